"""Linear algebra whose results do not depend on the number of processors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
T = TypeVar("T")


class _SharedLimit:
    """One thread of BLAS's, from the first of some calls that overlap to the last."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, int]] = []  # libraries, with the numbers of their threads
        self.forget_calls()

    def forget_calls(self) -> None:
        """Begin anew in a forked process, which has none of the threads that make calls.

        If it has been forked within a call, the first one of its own gives the limit up.
        """
        self._lock = threading.Lock()
        self._calls = 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        with self._lock:
            if not self._before:
                libraries = ThreadpoolController().select(user_api="blas").lib_controllers
                self._before = [(library, library.num_threads) for library in libraries]
            self._calls += 1
            own = [(lib, lib.num_threads) for lib, _ in self._before if _is_of_thread(lib)]
            for library, _ in self._before:
                _set_threads(library, 1)
        try:
            yield
        finally:
            with self._lock:
                self._calls = max(self._calls - 1, 0)  # 0: forked in this very call
                if self._calls == 0:
                    own, self._before = self._before + own, []
                for library, count in own:
                    _set_threads(library, count)


def _is_of_thread(library: Any) -> bool:
    """Say whether what threadpoolctl sets holds for the calling thread alone."""
    api: str = library.internal_api
    return api == "mkl" or (api == "openblas" and library.threading_layer == "openmp")


def _set_threads(library: Any, count: int) -> None:
    """Set the number of a library's threads, from whichever thread.

    Of OpenBLAS, threadpoolctl 3.8 lets the first thread alone set it, and ignores all others
    without a word, until that one ends or is cleared.
    """
    clear: Callable[..., object] = getattr(library, "clear_controlling_thread", lambda force: None)
    if library.num_threads != count:
        clear(force=True)
        library.set_num_threads(count)
        clear(force=True)


_one_blas_thread = _SharedLimit()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_blas_thread.forget_calls)


def on_one_blas_thread(function: Callable[P, T]) -> Callable[P, T]:
    """Return `function` such that products and decompositions in it run on one thread of BLAS's.

    With another number these round otherwise, and a Dask worker has one. Threads of BLAS's in each
    worker of an executor would also wait for each other's processors.
    """

    @wraps(function)
    def limited(*arguments: P.args, **options: P.kwargs) -> T:
        with _one_blas_thread.hold():
            return function(*arguments, **options)

    return limited
