"""Calls that an executor makes side by side, their results taken in order and bounded in memory."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")

MAX_WAITING_BYTES = 1 << 29
"""What the calls that are under way, or whose results wait, may take together; a single call may
take more. Enough for a few threads with layers of 100 MB each."""


class OrderedCalls(Generic[T]):
    """Calls under way, and results that wait for their turn: a bounded number of bounded size.

    Threads make the largest calls first, so that none is left alone with one at the end.
    A context manager: at the end, what has not begun is cancelled.
    """

    def __init__(
        self, executor: Executor, max_count: int, max_bytes: int = MAX_WAITING_BYTES
    ) -> None:
        self._executor = executor
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._pending: deque[tuple[Future[T], int]] = deque()
        self._bytes = 0
        self._largest_first: _LargestFirst[T] | None = None
        if isinstance(executor, ThreadPoolExecutor):
            self._largest_first = _LargestFirst(executor)

    def room_for(self, size: int) -> Iterator[T]:
        """Yield results, the earliest first, until a call that takes `size` bytes has room."""
        while self._pending and (
            len(self._pending) >= self._max_count or self._bytes + size > self._max_bytes
        ):
            yield self._next()

    def submit(self, size: int, function: Callable[..., T], *arguments: Any) -> None:
        """Make a call that takes `size` bytes, its arguments and result included."""
        if self._largest_first is not None:
            future = self._largest_first.submit(size, partial(function, *arguments))
        else:
            future = self._executor.submit(function, *arguments)
        self._pending.append((future, size))
        self._bytes += size

    def rest(self) -> Iterator[T]:
        """Yield the results of all calls."""
        while self._pending:
            yield self._next()

    def _next(self) -> T:
        future, size = self._pending.popleft()
        self._bytes -= size
        return future.result()

    def __enter__(self) -> OrderedCalls[T]:
        return self

    def __exit__(self, *error: object) -> None:
        for future, _ in self._pending:
            future.cancel()


def ordered_results(
    executor: Executor | None,
    function: Callable[[S], T],
    arguments: Iterable[tuple[int, Callable[[], S]]],
    max_count: int,
) -> Iterator[T]:
    """Yield `function` of each argument in order; with an executor, a few calls ahead.

    Args:
        executor: makes the calls; None: they are made here, one for each result that is taken.
        function: what is called, in another process perhaps.
        arguments: for each call what it takes in bytes, argument and result included, and what
            gives its argument: that is called here, when there is room.
        max_count: calls under way, and results that wait, at the most.
    """
    if executor is None:
        for _, argument in arguments:
            yield function(argument())
        return
    with OrderedCalls[T](executor, max_count) as calls:
        for size, argument in arguments:
            yield from calls.room_for(size)
            try:
                value = argument()
            except Exception:
                yield from calls.rest()  # errors of the calls before it come first
                raise
            calls.submit(size, function, value)
            del value  # so that its memory is free when the call has been made
        yield from calls.rest()


class _LargestFirst(Generic[T]):
    """Calls that wait for a thread; a free one takes the largest."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, int, Future[T], Callable[[], T]]] = []
        self._numbers = itertools.count()

    def submit(self, size: int, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            heapq.heappush(self._waiting, (-size, next(self._numbers), future, call))
        self._executor.submit(self._run)
        return future

    def _run(self) -> None:
        with self._lock:
            _, _, future, call = heapq.heappop(self._waiting)
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
