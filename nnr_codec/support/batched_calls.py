"""Calls in other processes, or on other machines: sent in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from hashlib import blake2b
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from .shared_function import call_shared, pickled

S = TypeVar("S")
T = TypeVar("T")

BATCHES_PER_WORKER = 4
"""Batches under way, enough for a worker to have the next one when it is done with one."""

_BATCH_BYTES = 1 << 20
"""A batch is sent when its calls take this: tens of milliseconds of work, beside which what an
executor adds to a task (about 0.3 ms for processes, a few for a cluster) does not count."""

_SMALL_BYTES = 4096
"""Functions up to this size travel with each call, whose answer is about as large."""


class Workers(NamedTuple):
    """How many processes an executor has, and how many calls they can make at a time."""

    processes: int
    threads: int


def workers_of(executor: Executor) -> Workers:
    """Return the workers of a process pool or of a Dask client; of others a guess.

    Nothing but speed depends on it.
    """
    count: Any = getattr(executor, "_max_workers", None)
    client: Any = getattr(executor, "_client", None)
    if not isinstance(count, int) and hasattr(client, "nthreads"):
        try:
            threads = list(client.nthreads().values())  # by worker
        except Exception:  # a closed client's, almost anything; to submit says what is wrong
            threads = []
        if threads:
            return Workers(len(threads), sum(threads))
    if not isinstance(count, int) or count < 1:
        count = os.cpu_count() or 1
    return Workers(count, count)


@dataclass
class _Batch:
    """Calls that are sent together.

    Attributes:
        results: of the calls without a result yet; the last of the batch.
        values: the pickled list of the arguments of all calls.
        count: of all calls.
    """

    results: list[Future[Any]]
    values: bytes
    count: int


class BatchedCalls(Generic[S, T]):
    """Calls of one function by an executor that has no threads of this process."""

    def __init__(self, executor: Executor, function: Callable[[S], T], max_count: int) -> None:
        """`max_count`: calls under way at the most, unless there are more workers."""
        self._executor = executor
        workers = workers_of(executor)
        self._function = pickled(function)
        self._key = blake2b(self._function, digest_size=16).digest()
        self._copies_left = workers.processes
        self._max_batches = BATCHES_PER_WORKER * workers.threads
        self.max_count = max(max_count, self._max_batches)
        self._max_batch_count = self.max_count // self._max_batches
        self._under_way: dict[Future[list[Any] | None], _Batch] = {}
        self._answered: SimpleQueue[Future[list[Any] | None]] = SimpleQueue()
        self._values: list[S] = []  # of the batch to come
        self._results: list[Future[T]] = []
        self._bytes = 0

    def submit(self, size: int, value: S) -> Future[T]:
        """Make a call that takes `size` bytes, with others in a batch."""
        result: Future[T] = Future()
        self._values.append(value)
        self._results.append(result)
        self._bytes += size
        if len(self._values) >= self._max_batch_count or self._bytes >= _BATCH_BYTES:
            self._send_values()
        return result

    def wait_for(self, result: Future[T]) -> None:
        """Wait until a call has been made."""
        if not result.done():
            self._send_values()  # a small batch is better than idle workers
        while not result.done():
            self._receive()

    def cancel(self, results: Iterable[Future[T]]) -> None:
        """Cancel the calls that have not begun, which give `results`: all that are under way."""
        for task in self._under_way:
            task.cancel()

    def _send_values(self) -> None:
        if not self._values:
            return
        self._receive(block=False)
        while len(self._under_way) >= self._max_batches:
            self._receive()
        values, results = self._values, self._results
        self._values, self._results, self._bytes = [], [], 0
        try:
            batch = _Batch(results, pickled(values), len(values))
        except Exception as error:  # what cannot be pickled raises almost anything
            _fail(results, error)
        else:
            self._send(batch)

    def _send(self, batch: _Batch, lacks_function: bool = False) -> None:
        """Send what of a batch has no result yet."""
        first = batch.count - len(batch.results)
        has_copy = lacks_function or self._copies_left > 0 or len(self._function) <= _SMALL_BYTES
        if has_copy:
            self._copies_left -= 1
        copy = self._function if has_copy else None
        try:
            task = self._executor.submit(call_shared, self._key, copy, batch.values, first)
        except Exception as error:  # a broken pool's; it is raised in its turn
            _fail(batch.results, error)
        else:
            self._under_way[task] = batch
            # `concurrent.futures.wait` does not see tasks that a pool cancels when it is shut down.
            task.add_done_callback(self._answered.put)

    def _receive(self, block: bool = True) -> None:
        """Note what has been answered; with `block`, wait for one answer."""
        while block or not self._answered.empty():
            task = self._answered.get()
            block = False
            batch = self._under_way.pop(task)
            try:
                values = task.result()
            except BaseException as error:
                _fail(batch.results, error)
                continue
            for value in values or ():
                batch.results.pop(0).set_result(value)
            if batch.results:
                self._send(batch, lacks_function=values is None)


def _fail(results: Iterable[Future[Any]], error: BaseException) -> None:
    for result in results:
        result.set_exception(error)
