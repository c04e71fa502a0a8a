"""Decoded tensors that are kept, as they may be read again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ...model import Array

_KEPT_BYTES = 1 << 26
"""Of all tensors that are kept."""


class KeptTensors:
    """Keeps the first 64 MiB of tensors."""

    def __init__(self) -> None:
        self._values: dict[str, Array] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, name: str, read: Callable[[], Array]) -> Array:
        """Return a tensor, which is not to be changed; `read` decodes it, unless it is here."""
        values = self._values.get(name)
        if values is None:
            values = read()
            with self._lock:
                if name not in self._values and self._bytes + values.nbytes <= _KEPT_BYTES:
                    values.setflags(write=False)
                    self._values[name] = values
                    self._bytes += values.nbytes
        return values
