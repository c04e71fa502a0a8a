"""Linear algebra whose results do not depend on the number of processors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

P = ParamSpec("P")
T = TypeVar("T")


class _SharedLimit:
    """A limit of the whole process, from the first of some calls that overlap to the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._limits: threadpool_limits | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._calls += 1
            if self._calls == 1:
                self._limits = threadpool_limits(1, "blas")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0 and self._limits is not None:
                self._limits.restore_original_limits()


_one_blas_thread = _SharedLimit()


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
