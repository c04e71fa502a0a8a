"""Calls in other processes: batches, and a function that travels to each worker about once."""

from __future__ import annotations

import pickle
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest

from nnr_codec.support import shared_function
from nnr_codec.support.batched_calls import BATCHES_PER_WORKER, workers_of
from nnr_codec.support.ordered_calls import OrderedCalls, ordered_results

CONTEXT = bytes(100_000)


def doubled(context: bytes, value: int) -> int:
    return 2 * value + len(context) - len(CONTEXT)


def quotient(context: bytes, value: int) -> float:
    return 6 / value


class Simulated(Executor):
    """Workers that take turns, each with functions of its own, though in this process.

    Attributes:
        sizes: bytes of each task.
        copies: tasks that had the context.
        turns: which worker makes the next tasks.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, workers: int, told: int = 0) -> None:
        """`told`: the number of workers that the executor pretends to have."""
        self._max_workers = told or workers
        self._monkeypatch = monkeypatch
        self.kept: list[Any] = [OrderedDict() for _ in range(workers)]
        self.turns: Iterator[int] = iter(lambda: len(self.sizes) % len(self.kept), -1)
        self.sizes: list[int] = []

    @property
    def copies(self) -> int:
        return sum(size > len(CONTEXT) for size in self.sizes)

    def submit(self, function: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        worker = next(self.turns)
        task = pickle.dumps((function, args))
        self.sizes.append(len(task))
        self._monkeypatch.setattr(shared_function, "_kept", self.kept[worker])
        done: Future[Any] = Future()
        try:
            function, args = pickle.loads(task)
            done.set_result(function(*args))
        except Exception as error:
            done.set_exception(error)
        return done


def results(
    executor: Executor, values: range | list[int], function: Any = doubled, max_count: int = 16
) -> list[Any]:
    arguments = ((100, partial(int, value)) for value in values)
    call = partial(function, CONTEXT)
    return list(ordered_results(executor, call, arguments, max_count))


VALUES = range(200)
EXPECTED = [2 * value for value in VALUES]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_function_travels_once_to_each_worker(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    executor = Simulated(monkeypatch, workers)
    assert results(executor, VALUES) == EXPECTED
    assert executor.copies == workers
    assert len(executor.sizes) > 5 * workers
    assert max(size for size in executor.sizes if size < len(CONTEXT)) < 1000


def test_worker_that_was_left_out_asks_for_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker gets both of the first copies; later the other one appears, and a third."""
    executor = Simulated(monkeypatch, 3, told=2)
    order = [0] * 20 + [1] * 20 + [2] * 20
    executor.turns = iter(order + [2, 1, 0] * 200)
    assert results(executor, VALUES) == EXPECTED
    assert 3 <= executor.copies <= 2 * 2 + 2


def test_worker_that_lost_the_function_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Simulated(monkeypatch, 2)
    choice = random.Random(1)

    def turns() -> Iterator[int]:
        while True:
            worker = choice.randrange(2)
            if len(executor.sizes) in (20, 21, 30):
                executor.kept[worker].clear()
            yield worker

    executor.turns = turns()
    assert results(executor, VALUES) == EXPECTED
    assert 2 + 2 <= executor.copies <= 2 + 3 * 3


def test_fewer_workers_than_told(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Simulated(monkeypatch, 1, told=4)
    assert results(executor, VALUES) == EXPECTED
    assert executor.copies <= 8


def test_worker_keeps_the_last_few_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Simulated(monkeypatch, 1)
    for number in range(10):
        call = partial(doubled, CONTEXT + bytes([number]))
        assert list(ordered_results(executor, call, [(1, lambda: 3)], 4)) == [7]
    assert len(executor.kept[0]) == 4


@pytest.mark.parametrize("values", [[0, 1], [1, 2, 0, 3], [*range(1, 40), 0, 5, 0]])
def test_errors_come_in_their_turn(monkeypatch: pytest.MonkeyPatch, values: list[int]) -> None:
    executor = Simulated(monkeypatch, 2)
    arguments = ((100, partial(int, value)) for value in values)
    made = ordered_results(executor, partial(quotient, CONTEXT), arguments, 16)
    for value in values[: values.index(0)]:
        assert next(made) == 6 / value
    with pytest.raises(ZeroDivisionError):
        next(made)


class Elsewhere(Executor):
    """Threads that do not look like a pool of threads; counts the tasks that are not done."""

    def __init__(self, workers: int) -> None:
        self._max_workers = workers
        self._threads = ThreadPoolExecutor(workers)
        self._tasks: list[Future[Any]] = []
        self.most = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        self._tasks.append(self._threads.submit(function, *args))
        self.most = max(self.most, sum(not task.done() for task in self._tasks))
        return self._tasks[-1]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_under_way(workers: int) -> None:
    with Elsewhere(workers) as executor:
        assert results(executor, range(500), max_count=64) == [2 * n for n in range(500)]
        assert executor.most <= BATCHES_PER_WORKER * workers


_released = threading.Event()
_done: list[int] = []


def _await(value: int) -> int:
    _released.wait(10)
    _done.append(value)
    return value


def test_what_has_not_begun_is_cancelled() -> None:
    with Elsewhere(1) as executor:
        with OrderedCalls(executor, _await, 4) as calls:
            for value in range(4):
                calls.submit(1 << 20, value)
        tasks = executor._tasks
        _released.set()
        wait(tasks)
    assert _done == [0]
    assert sum(task.cancelled() for task in tasks) == 3


def test_broken_executor() -> None:
    class Broken(Executor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
            raise BrokenExecutor("lost")

    with pytest.raises(BrokenExecutor, match="lost"):
        results(Broken(), VALUES)


def test_tasks_that_are_cancelled() -> None:
    """As by a pool that is shut down: `concurrent.futures.wait` does not see that."""

    class ShutDown(Executor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
            task: Future[Any] = Future()
            threading.Timer(0.05, task.cancel).start()
            return task

    made: SimpleQueue[type[BaseException]] = SimpleQueue()

    def run() -> None:
        with pytest.raises(CancelledError) as caught:
            results(ShutDown(), VALUES)
        made.put(caught.type)

    threading.Thread(target=run, daemon=True).start()
    assert made.get(timeout=20) is CancelledError


def test_what_cannot_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Simulated(monkeypatch, 1)
    arguments = [(1 << 20, lambda: 1), (1 << 20, lambda: threading.Lock())]
    made = ordered_results(executor, partial(doubled, CONTEXT), arguments, 4)  # type: ignore[arg-type]
    assert next(made) == 2
    with pytest.raises(TypeError, match="pickle"):
        next(made)


def test_number_of_workers() -> None:
    class Client:
        def nthreads(self) -> dict[str, int]:
            return {"tcp://a": 2, "tcp://b": 3}

    class Closed:
        def nthreads(self) -> dict[str, int]:
            raise AttributeError("'NoneType' object has no attribute 'send_recv'")

    class OfClient(Executor):
        def __init__(self, client: Client | Closed) -> None:
            self._client = client

    assert workers_of(OfClient(Client())) == (2, 5)
    assert workers_of(OfClient(Closed())) == workers_of(Executor())
    assert workers_of(Elsewhere(7)) == (7, 7)
    assert workers_of(Executor()) >= (1, 1)
