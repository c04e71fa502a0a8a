"""Linear algebra whose results do not depend on the number of processors."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

P = ParamSpec("P")
T = TypeVar("T")


def on_one_blas_thread(function: Callable[P, T]) -> Callable[P, T]:
    """Return `function` such that products and decompositions in it run on one thread of BLAS's.

    With another number these round otherwise, and a Dask worker has one. Threads of BLAS's in each
    worker of an executor would also wait for each other's processors.
    """

    @wraps(function)
    def limited(*arguments: P.args, **options: P.kwargs) -> T:
        with threadpool_limits(1, "blas"):
            return function(*arguments, **options)

    return limited
