"""Calls that an executor makes side by side, their results taken in order and bounded in memory."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeGuard, TypeVar

from .batched_calls import BatchedCalls

S = TypeVar("S")
T = TypeVar("T")

MAX_WAITING = 64
"""Calls under way, and results that wait for their turn, as a rule."""

MAX_WAITING_BYTES = 1 << 29
"""What the calls that are under way, or whose results wait, may take together; a single call may
take more. Enough for a few threads with layers of 100 MB each."""


def has_threads(executor: Executor | None) -> TypeGuard[ThreadPoolExecutor]:
    """Say whether an executor's workers are threads with the objects of this one.

    Those of Python 3.14's InterpreterPoolExecutor, though a ThreadPoolExecutor, have none of them.
    """
    interpreters = getattr(futures, "InterpreterPoolExecutor", None) or ()
    return isinstance(executor, ThreadPoolExecutor) and not isinstance(executor, interpreters)


def given(value: S) -> Callable[[], S]:
    """Return what gives a value: for calls of `ordered_results` whose arguments are there."""
    return partial(_itself, value)


def _itself(value: S) -> S:
    return value


class OrderedCalls(Generic[S, T]):
    """Calls under way, and results that wait for their turn: a bounded number of bounded size.

    Threads make the largest calls first, so that none is left alone with one at the end.
    A context manager: at the end, what has not begun is cancelled.
    """

    def __init__(
        self,
        executor: Executor,
        function: Callable[[S], T],
        max_count: int = MAX_WAITING,
        max_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """`function`, `max_count`: those of :func:`ordered_results`."""
        self._calls: BatchedCalls[S, T] | _ThreadCalls[S, T]
        if has_threads(executor):
            self._calls = _ThreadCalls(executor, function, max_count)
        else:
            self._calls = BatchedCalls(executor, function, max_count)
        self._max_bytes = max_bytes
        self._pending: deque[tuple[Future[T], int]] = deque()
        self._bytes = 0

    def room_for(self, size: int) -> Iterator[T]:
        """Yield results, the earliest first, until a call that takes `size` bytes has room."""
        return self.until(
            lambda: (
                len(self._pending) < self._calls.max_count and self._bytes + size <= self._max_bytes
            )
        )

    def until(self, condition: Callable[[], bool]) -> Iterator[T]:
        """Yield results, the earliest first, until a condition holds or there are none left."""
        while self._pending and not condition():
            yield self._next()

    def submit(self, size: int, value: S) -> None:
        """Make a call that takes `size` bytes, its argument and result included."""
        self._pending.append((self._calls.submit(size, value), size))
        self._bytes += size

    def rest(self) -> Iterator[T]:
        """Yield the results of all calls."""
        return self.until(lambda: False)

    def _next(self) -> T:
        result, size = self._pending.popleft()
        self._bytes -= size
        self._calls.wait_for(result)
        return result.result()

    def __enter__(self) -> OrderedCalls[S, T]:
        return self

    def __exit__(self, *error: object) -> None:
        self._calls.cancel(result for result, _ in self._pending)


def ordered_results(
    executor: Executor | None,
    function: Callable[[S], T],
    arguments: Iterable[tuple[int, Callable[[], S]]],
    max_count: int = MAX_WAITING,
) -> Iterator[T]:
    """Yield `function` of each argument in order; with an executor, a few calls ahead.

    Args:
        executor: makes the calls; None: they are made here, one for each result that is taken.
        function: what is called. To other processes it is sent about once each, so what all calls
            need is best bound to it (`functools.partial`, or a method).
        arguments: for each call what it takes in bytes, argument and result included, and what
            gives its argument: that is called here, when there is room.
        max_count: calls under way, and results that wait, at the most; four for each worker if
            that is more, and the workers are not threads.
    """
    if executor is None:
        for _, argument in arguments:
            yield function(argument())
        return
    with OrderedCalls(executor, function, max_count) as calls:
        for size, argument in arguments:
            yield from calls.room_for(size)
            try:
                value = argument()
            except Exception:
                yield from calls.rest()  # errors of the calls before it come first
                raise
            calls.submit(size, value)
            del value  # so that its memory is free when the call has been made
        yield from calls.rest()


class _ThreadCalls(Generic[S, T]):
    """Calls that wait for a thread; a free one takes the largest."""

    def __init__(
        self, executor: ThreadPoolExecutor, function: Callable[[S], T], max_count: int
    ) -> None:
        self.max_count = max_count
        self._executor = executor
        self._function = function
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, int, Future[T], S]] = []
        self._numbers = itertools.count()

    def submit(self, size: int, value: S) -> Future[T]:
        result: Future[T] = Future()
        with self._lock:
            heapq.heappush(self._waiting, (-size, next(self._numbers), result, value))
        self._executor.submit(self._run).add_done_callback(self._fail_if_dropped)
        return result

    def wait_for(self, result: Future[T]) -> None:
        """In a thread of the executor, make calls until this one is under way.

        All of its threads may wait in the same way, and then none would make any.
        """
        if threading.current_thread() in self._executor._threads:
            while not (result.running() or result.done()):
                self._run()

    def cancel(self, results: Iterable[Future[T]]) -> None:
        """Cancel the calls that have not begun."""
        for result in results:
            result.cancel()

    def _fail_if_dropped(self, task: Future[None]) -> None:
        """Fail a call if the pool will not make it: it is shut down, or its initializer failed."""
        error = CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._run(error)

    def _run(self, failure: BaseException | None = None) -> None:
        """Make the largest call that waits, if one still does; with `failure`, fail it instead."""
        with self._lock:
            while self._waiting:
                _, _, result, value = heapq.heappop(self._waiting)
                if result.set_running_or_notify_cancel():
                    break
            else:
                return
        try:
            if failure is not None:
                raise failure
            result.set_result(self._function(value))
        except BaseException as error:
            result.set_exception(error)
