"""Batches that are gone over several times, though they may come only once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..support.spilled import SpilledArray, SpillFile
from ..user.module import with_parts
from .held_back import KEPT_BYTES, bytes_of

if TYPE_CHECKING:
    import torch

_SMALL = 1 << 10
"""Bytes of arrays that stay in memory in any case."""


class RepeatedBatches:
    """Batches of a source that is gone over once: all passes have the same ones, in their order.

    The first ones stay in memory. Of the others tensors and arrays are in a temporary file, which
    goes with this object, as far as they are in tuples, lists and dicts of Python's own.
    """

    def __init__(self, batches: Iterable[Any], max_bytes: int = KEPT_BYTES) -> None:
        """`max_bytes`: of what stays in memory."""
        self._source = batches
        self._left = max_bytes
        self._kept: list[Any] = []
        self._is_whole = False
        self._file: SpillFile | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches; OSError if the file cannot be written, or read."""
        if self._is_whole:
            yield from map(_read, self._kept)
            return
        for batch in self._source:
            self._left -= bytes_of(batch)
            self._kept.append(batch if self._left >= 0 else self._put(batch))
            yield batch
        self._is_whole = True

    def _put(self, values: Any) -> Any:
        """Return values with places in the file for what went there."""
        if self._file is None:
            self._file = SpillFile()
        if isinstance(values, np.ndarray) and not values.dtype.hasobject:
            return values if values.nbytes < _SMALL else self._file.put(values)
        if _is_plain_tensor(values) and values.nbytes >= _SMALL:
            import torch

            data = values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            place = self._file.put(data)
            return _SpilledTensor(place, values.dtype, tuple(values.shape), values.device)
        return with_parts(self._put, values)


@dataclass(frozen=True, slots=True)
class _SpilledTensor:
    """A tensor whose bytes are in a file."""

    place: SpilledArray
    dtype: torch.dtype
    shape: tuple[int, ...]
    device: torch.device

    def read(self) -> torch.Tensor:
        import torch

        flat = torch.from_numpy(self.place.read()).view(self.dtype)
        return flat.reshape(self.shape).to(self.device)


def _is_plain_tensor(values: Any) -> bool:
    """Whether its elements are all there is of it."""
    import torch

    return (
        type(values) is torch.Tensor
        and values.layout is torch.strided
        and not (values.requires_grad or values.is_quantized or values.is_conj())
    )


def _read(values: Any) -> Any:
    """Return values with what is in the file in its places."""
    if isinstance(values, SpilledArray | _SpilledTensor):
        return values.read()
    return with_parts(_read, values)
