"""Settings of the whole process that have a value for a while, whichever threads want that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class ProcessSetting(Generic[_Value]):
    """A setting that has a value while any thread is in its block; then it is what it was before
    the first of them came."""

    def __init__(
        self,
        get: Callable[[], _Value],
        put: Callable[[_Value], object],
        value: _Value,
        *,
        of_threads: bool = False,
    ) -> None:
        """`of_threads`: whether each thread has to put it for itself, too."""
        self._get, self._put, self._value, self._of_threads = get, put, value, of_threads
        self._lock = threading.Lock()
        self._depth = 0
        self._before: _Value

    def __enter__(self) -> _Value:
        """Return what it was before."""
        with self._lock:
            if not self._depth:
                self._before = self._get()
            if not self._depth or self._of_threads:
                self._put(self._value)
            self._depth += 1
            return self._before

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth or self._of_threads:
                self._put(self._before)
