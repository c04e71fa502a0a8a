"""Linear algebra whose results do not depend on the number of processors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

P = ParamSpec("P")
T = TypeVar("T")


class SharedLimit:
    """A limit of the whole process, from the first of some calls that overlap to the last.

    Args:
        limit: sets it, and returns what restores the state before.
    """

    def __init__(self, limit: Callable[[], Callable[[], object]]) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._calls = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._calls == 0:
                self._restore = self._limit()
            self._calls += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0:
                self._restore()


_one_blas_thread = SharedLimit(lambda: threadpool_limits(1, "blas").restore_original_limits)


def on_one_blas_thread(function: Callable[P, T]) -> Callable[P, T]:
    """Return `function` such that products and decompositions in it run on one thread of BLAS's.

    With another number these round otherwise, and a Dask worker has one. Threads of BLAS's in each
    worker of an executor would also wait for each other's processors.
    """

    @wraps(function)
    def limited(*arguments: P.args, **options: P.kwargs) -> T:
        with _one_blas_thread:
            return function(*arguments, **options)

    return limited
