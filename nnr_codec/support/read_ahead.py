"""Items of a source that may keep its reader waiting, such as a pipe, read ahead in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_AHEAD = 16
"""Items that are read and not taken yet, at the most: enough for the threads of most machines."""


@contextmanager
def read_ahead(
    items: Generator[T, None, None], may_wait: bool
) -> Iterator[tuple[Iterator[T], Callable[[], bool]]]:
    """Give the items of a generator, and what tells whether the next one (or the end) is there.

    Args:
        items: the generator, which is closed in the end.
        may_wait: whether it may wait for its source. A thread runs it then; else every item counts
            as being there, and is made when it is taken.
    """
    if may_wait:
        with ItemsAhead(items) as ahead:
            yield iter(ahead), ahead.has_next
    else:
        with closing(items):
            yield items, lambda: True


class ItemsAhead(Generic[T]):
    """The items of a generator, which a thread runs ahead: so one can tell whether one is there.

    A context manager. At its end the thread stops, and closes the generator. If it is waiting for
    the source at that moment, it does so when the source gives something or ends; nothing waits for
    the thread, and it does not keep the program from ending.
    """

    def __init__(self, items: Generator[T, None, None]) -> None:
        self._items = items
        self._room = threading.Semaphore(MAX_AHEAD)
        self._results: SimpleQueue[T | _End] = SimpleQueue()
        self._stopped = False
        threading.Thread(target=self._run, name="nnr-read-ahead", daemon=True).start()

    def has_next(self) -> bool:
        """Whether the next item, or the end, is there."""
        return not self._results.empty()

    def __iter__(self) -> Iterator[T]:
        """Yield the items, waiting for each; raise what the generator raises, in its place."""
        while not isinstance(item := self._results.get(), _End):
            self._room.release()
            yield item
        if item.error is not None:
            raise item.error

    def _run(self) -> None:
        end = _End()
        try:
            while self._room.acquire() and not self._stopped:
                self._results.put(next(self._items))
        except StopIteration:
            pass
        except BaseException as error:
            end.error = error
        self._items.close()
        self._results.put(end)

    def __enter__(self) -> ItemsAhead[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped = True
        self._room.release()


class _End:
    """What comes behind the last item: the error that the generator raised, if it did."""

    error: BaseException | None = None
