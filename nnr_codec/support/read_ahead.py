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

MAX_AHEAD_BYTES = 1 << 26
"""What these may have together before another one is read, of whatever size that is."""


@contextmanager
def read_ahead(
    items: Generator[T, None, None], may_wait: bool, size_of: Callable[[T], int]
) -> Iterator[tuple[Iterator[T], Callable[[], bool]]]:
    """Give the items of a generator, and what tells whether the next one (or the end) is there.

    Args:
        items: the generator, which is closed in the end.
        may_wait: whether it may wait for its source. A thread runs it then; else every item counts
            as being there, and is made when it is taken.
        size_of: returns the bytes of an item.
    """
    if may_wait:
        with ItemsAhead(items, size_of) as ahead:
            yield iter(ahead), ahead.has_next
    else:
        with closing(items):
            yield items, lambda: True


class ItemsAhead(Generic[T]):
    """The items of a generator, which a thread runs ahead: so one can tell whether one is there.

    The thread makes an item while fewer than MAX_AHEAD, and of fewer than MAX_AHEAD_BYTES, wait to
    be taken: so that one may always wait, however large, and no more than one is beyond the bytes.

    A context manager. At its end the thread stops, and closes the generator. If it is waiting for
    the source at that moment, it does so when the source gives something or ends; nothing waits for
    the thread, and it does not keep the program from ending.
    """

    def __init__(self, items: Generator[T, None, None], size_of: Callable[[T], int]) -> None:
        self._items = items
        self._size_of = size_of
        self._room = threading.Condition()  # of what follows
        self._waiting_count = self._waiting_bytes = 0
        self._stopped = False
        self._results: SimpleQueue[T | _End] = SimpleQueue()
        threading.Thread(target=self._run, name="nnr-read-ahead", daemon=True).start()

    def has_next(self) -> bool:
        """Whether the next item, or the end, is there."""
        return not self._results.empty()

    def __iter__(self) -> Iterator[T]:
        """Yield the items, waiting for each; raise what the generator raises, in its place."""
        while not isinstance(item := self._results.get(), _End):
            self._count(-1, -self._size_of(item))
            yield item
        if item.error is not None:
            raise item.error

    def _run(self) -> None:
        end = _End()
        try:
            while self._wait_for_room():
                item = next(self._items)
                self._count(1, self._size_of(item))
                self._results.put(item)
                del item  # which would be held while the next one is waited for
        except StopIteration:
            pass
        except BaseException as error:
            end.error = error
        self._items.close()
        self._results.put(end)

    def _wait_for_room(self) -> bool:
        """Wait until an item may be made; return False if no more are wanted."""
        with self._room:
            self._room.wait_for(
                lambda: (
                    self._stopped
                    or (self._waiting_count < MAX_AHEAD and self._waiting_bytes < MAX_AHEAD_BYTES)
                )
            )
            return not self._stopped

    def _count(self, count: int, size: int) -> None:
        """Note that items wait, or do no more."""
        with self._room:
            self._waiting_count += count
            self._waiting_bytes += size
            self._room.notify()

    def __enter__(self) -> ItemsAhead[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._room:
            self._stopped = True
            self._room.notify()


class _End:
    """What comes behind the last item: the error that the generator raised, if it did."""

    error: BaseException | None = None
