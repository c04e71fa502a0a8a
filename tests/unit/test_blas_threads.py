"""One limit of BLAS threads for all calls that overlap, and then what was before."""

from __future__ import annotations

import threading

import pytest

from nnr_codec.support import blas_threads


def test_calls_that_overlap_share_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    first_ended, second_began = threading.Event(), threading.Event()
    limits: list[int | None] = [None]

    class Limits:
        def __init__(self, count: int, api: str) -> None:
            assert api == "blas"
            limits.append(count)

        def restore_original_limits(self) -> None:
            limits.append(None)

    monkeypatch.setattr(blas_threads, "threadpool_limits", Limits)

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
