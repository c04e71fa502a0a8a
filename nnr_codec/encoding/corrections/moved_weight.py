"""Weights that are quantized as if they had other values, for what later ones cannot undo."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from ...model import Parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedWeight(Parameter):
    """A weight with the values that are quantized. Errors are those of the one in the model.

    Attributes:
        original: the weight as the model has it.
    """

    original: Parameter

    def loaded(self) -> Self:
        """Return it with the values of both in memory."""
        load = Parameter.from_array(self.name, self.read()).load
        return replace(self, load=load, original=self.original.loaded())
