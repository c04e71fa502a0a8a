"""One thread of BLAS's for all calls that overlap, and what was before for the process after."""

from __future__ import annotations

import threading

import pytest
from threadpoolctl import threadpool_info

from nnr_codec.support.blas_threads import on_one_blas_thread


def blas_threads() -> set[int]:
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def test_calls_that_overlap_share_the_limit() -> None:
    first_ended, second_began = threading.Event(), threading.Event()
    seen: list[set[int]] = []

    @on_one_blas_thread
    def first() -> None:
        second_began.wait(10)

    @on_one_blas_thread
    def second() -> None:
        second_began.set()
        first_ended.wait(10)
        seen.append(blas_threads())

    before = blas_threads()
    if before in (set(), {1}):
        pytest.skip("BLAS has one thread as it is, or its threads cannot be set")
    threads = [threading.Thread(target=call) for call in (first, second)]
    for thread in threads:
        thread.start()
    threads[0].join()
    first_ended.set()
    threads[1].join()
    assert seen == [{1}]
    assert blas_threads() == before
