"""Two halves of the calibration samples, each of which tells how far the other can be trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from ..user.module import parts_of, sample_count


class Halves:
    """Puts samples into one half and the other in turns; one that comes again is in the half where
    it was, as it says nothing new of itself."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def of(self, inputs: Any) -> list[int]:
        """Return the half, 0 or 1, of each sample of a batch's inputs."""
        halves = []
        count = sample_count(inputs)
        for index in range(count):
            digest = _digest(inputs, index, count)
            halves.append(self._numbers.setdefault(digest, len(self._numbers)) % 2)
        return halves


def own_samples(halves: Sequence[int], half: int) -> slice | list[int]:
    """Return which samples are in a half; where the halves take turns, as a slice."""
    if all(found == (halves[0] + index) % 2 for index, found in enumerate(halves)):
        return slice((half - halves[0]) % 2, None, 2)
    return [index for index, found in enumerate(halves) if found == half]


def _digest(inputs: Any, index: int, count: int) -> bytes:
    """Return the digest of one of so many samples; what has another length is of them all."""
    import torch

    state = hashlib.blake2b(digest_size=16)
    is_alone = True
    for part in parts_of(inputs):
        if isinstance(part, torch.Tensor) and part.layout == torch.strided and part.dim() > 0:
            is_alone = is_alone and len(part) != count
            sample = (part[index] if len(part) == count else part).detach().contiguous().cpu()
            state.update(sample.view(-1).view(torch.uint8).numpy().tobytes())
    if is_alone:
        state.update(index.to_bytes(8, "little"))
    return state.digest()
