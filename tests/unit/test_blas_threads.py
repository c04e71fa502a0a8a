"""One limit of BLAS threads for all calls that overlap, and then what was before."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np  # noqa: F401  loads BLAS
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from nnr_codec.support import blas_threads

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")


class Library:
    """A library of linear algebra that tells of each change of its number of threads."""

    threading_layer = "pthreads"

    def __init__(self, internal_api: str) -> None:
        self.internal_api = internal_api
        self.limits: list[int | None] = [None]

    @property
    def num_threads(self) -> int | None:
        return self.limits[-1]

    def set_num_threads(self, count: int | None) -> None:
        self.limits.append(count)


def load(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    class Controller:
        def select(self, user_api: str) -> Controller:
            assert user_api == "blas"
            self.lib_controllers = [library]
            return self

    monkeypatch.setattr(blas_threads, "ThreadpoolController", Controller)


def test_calls_that_overlap_share_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    first_ended, second_began = threading.Event(), threading.Event()
    library = Library("openblas")
    limits = library.limits
    load(monkeypatch, library)

    @blas_threads.on_one_blas_thread
    def first() -> None:
        second_began.wait(10)

    @blas_threads.on_one_blas_thread
    def second() -> int | None:
        second_began.set()
        first_ended.wait(10)
        return limits[-1]

    thread = threading.Thread(target=lambda: (first(), first_ended.set()))
    thread.start()
    assert second() == 1
    thread.join()
    assert limits == [None, 1, None]
    with pytest.raises(ZeroDivisionError):
        blas_threads.on_one_blas_thread(lambda: 1 // 0)()
    assert limits == [None, 1, None, 1, None]


def blas() -> set[int]:
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def _blas_in_calls() -> tuple[set[int], set[int]]:
    """Return the numbers of threads in a call, and after it."""
    return blas_threads.on_one_blas_thread(blas)(), blas()


def run_interleaved(threads: Callable[[], object], main_first: bool) -> list[object]:
    """Look at `threads` in the main and another thread: within calls that overlap, and after them.

    The call that begins first ends first.
    """
    first_began, second_began, first_ended = (threading.Event() for _ in range(3))
    seen: list[object] = []

    @blas_threads.on_one_blas_thread
    def first() -> None:
        first_began.set()
        second_began.wait(10)
        seen.append(threads())

    @blas_threads.on_one_blas_thread
    def second() -> None:
        second_began.set()
        first_ended.wait(10)
        blas_threads.on_one_blas_thread(lambda: None)()
        seen.append(threads())

    def run_first() -> None:
        first()
        seen.append(threads())
        first_ended.set()

    def run_second() -> None:
        first_began.wait(10)
        second()
        seen.append(threads())

    here, there = (run_first, run_second) if main_first else (run_second, run_first)
    thread = threading.Thread(target=there)
    thread.start()
    here()
    thread.join()
    return [*seen, threads()]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """BLAS has two threads. The main thread has set them, which threadpoolctl 3.8 remembers."""
    with threadpool_limits(2, "blas"):
        if blas() != {2}:
            pytest.skip("needs a BLAS whose threads can be set")
        yield
        assert blas() == {2}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("main_first", [True, False])
def test_any_thread_limits_the_library(main_first: bool) -> None:
    if any(library["internal_api"] == "mkl" for library in threadpool_info()):
        pytest.skip("needs a number of threads for the whole process")
    assert run_interleaved(blas, main_first) == [{1}, {1}, {1}, {2}, {2}]


@pytest.mark.usefixtures("two_threads")
def test_another_thread_limits_the_library() -> None:
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(_blas_in_calls).result(20) == ({1}, {2})


@pytest.mark.parametrize("main_first", [True, False])
def test_number_of_each_thread(monkeypatch: pytest.MonkeyPatch, main_first: bool) -> None:
    """As MKL has it."""

    class PerThread(threading.local):
        internal_api = "mkl"
        num_threads = 2

        def set_num_threads(self, count: int) -> None:
            self.num_threads = count

    library = PerThread()
    load(monkeypatch, library)
    assert run_interleaved(lambda: library.num_threads, main_first) == [1, 2, 1, 2, 2]


@needs_fork
@pytest.mark.usefixtures("two_threads")
def test_process_forked_within_a_call() -> None:
    @blas_threads.on_one_blas_thread
    def forked() -> tuple[set[int], set[int]]:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor:
            return executor.submit(_blas_in_calls).result(20)

    assert forked() == ({1}, {2})


@pytest.fixture
def set_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another thread is about to limit a library."""
    sets, may_set = threading.Event(), threading.Event()

    class Slow(Library):
        def set_num_threads(self, count: int | None) -> None:
            if threading.current_thread() is thread:
                sets.set()
                may_set.wait(20)
            super().set_num_threads(count)

    load(monkeypatch, Slow("openblas"))
    thread = threading.Thread(target=blas_threads.on_one_blas_thread(lambda: None))
    thread.start()
    sets.wait(10)
    yield
    may_set.set()
    thread.join()


@needs_fork
@pytest.mark.usefixtures("set_elsewhere")
def test_process_forked_while_another_thread_sets_the_limit() -> None:
    process = get_context("fork").Process(target=blas_threads.on_one_blas_thread(lambda: None))
    process.start()
    process.join(10)
    hangs = process.is_alive()
    process.kill()
    assert not hangs
    assert process.exitcode == 0
