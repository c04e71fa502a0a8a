"""One way to code a tensor exactly, and what it is expected to take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from ..factorization.meanings import Meaning
from ..factorization.tensor_rules import TensorRule
from ..model import dtype_name

UNNAMED = ""
"""The name of a part before `Representation.with_part` gives it one."""

BITS_OF_PART = 8 * 60
"""Of the second unit's header, and its name in the map."""

_BITS_OF_ENTRY = 8 * 50
"""In the model map: name, element type, key."""


@dataclass(frozen=True, slots=True)
class Representation:
    """How one tensor is coded exactly.

    Attributes:
        kind: "raw" binary32 as it is; "step" integers times the step of `qp`; or that of a meaning
            in the map.
        bits: what it is expected to take in all.
        entry: what the map says; `with_part` adds the name of a second tensor.
        unary_length: greater-than flags that suit the integers.
        part_unary_length: the same of the second tensor.
        qp: quantization parameter, of "step" alone.
    """

    kind: str
    bits: float
    entry: TensorRule = field(default_factory=TensorRule)
    unary_length: int = 11
    part_unary_length: int = 1
    qp: int | None = None

    @property
    def part_suffix(self) -> str | None:
        """What the name of its second tensor ends in; None: it has none."""
        meaning = self.entry.meaning
        return None if meaning is None or meaning.part_key is None else f".{meaning.part_key}"

    def with_part(self, name: str) -> Representation:
        """Return it with the name of its second tensor."""
        meaning = self.entry.meaning
        if meaning is None or meaning.part_key is None:
            return self
        named: Meaning = replace(meaning, **{meaning.part_key: name})
        return replace(self, entry=replace(self.entry, meaning=named))


def of_meaning(
    meaning: Meaning,
    values: npt.NDArray[Any],
    bits: float,
    unary_length: int,
    part_unary_length: int = 1,
) -> Representation:
    """Return the representation of values by a meaning; `bits`: what the integers take."""
    entry = TensorRule(dtype_name(values.dtype), meaning=meaning)
    return Representation(
        meaning.kind, bits + _BITS_OF_ENTRY, entry, unary_length, part_unary_length
    )
