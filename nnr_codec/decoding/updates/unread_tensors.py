"""Tensors that were decoded because another one of their unit was read."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ...bitstream import ParsedUnit
from ...model import Array
from ..unit_decoder import DecodedTensor

_MOST_BYTES = 1 << 24
"""Of all that are kept: enough for the vectors of many layers."""


class UnreadTensors:
    """Keeps such tensors until they are read, up to 16 MiB together; of units, those that were
    decoded last. Threads may share it."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[ParsedUnit, dict[str, Array]]] = {}  # with a unit its id stays
        self._bytes = 0
        self._lock = threading.Lock()

    def pop(self, unit: ParsedUnit, name: str) -> Array | None:
        """Return a tensor of a unit, which belongs to the caller; None: it is not here."""
        with self._lock:
            _, tensors = self._kept.get(id(unit), (unit, {}))
            values = tensors.pop(name, None)
            if values is not None:
                self._bytes -= values.nbytes
                if not tensors:
                    del self._kept[id(unit)]
            return values

    def put(self, unit: ParsedUnit, tensors: Iterable[DecodedTensor]) -> None:
        """Keep tensors of a unit: of several the smaller ones, if not all can be kept."""
        kept, size = {}, 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.values.nbytes):
            if size + tensor.values.nbytes <= _MOST_BYTES:
                kept[tensor.name] = tensor.values
                size += tensor.values.nbytes
        with self._lock:
            self._drop(id(unit))
            while self._kept and self._bytes + size > _MOST_BYTES:
                self._drop(next(iter(self._kept)))
            if kept:
                self._kept[id(unit)] = unit, kept
                self._bytes += size

    def _drop(self, key: int) -> None:
        _, tensors = self._kept.pop(key, (None, {}))
        self._bytes -= sum(values.nbytes for values in tensors.values())
