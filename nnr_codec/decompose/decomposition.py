"""The outcome of decomposing a model's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..factorization.forms import FactoredWeight
from ..options import EncodeOptions, escaped


@dataclass
class Decomposition:
    """What became of a model's weights.

    Attributes:
        factorizations: the decomposed weights, by name, in the order of the model.
        skipped: why other weights stay dense, by name.
        overrides: options of factors, as in `EncodeOptions.overrides`.
    """

    factorizations: dict[str, FactoredWeight] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    @property
    def saved(self) -> int:
        """Parameters that the factors have less than the weights; shared ones count once."""
        dense = sum(math.prod(weight.shape) for weight in self.factorizations.values())
        factors = {id(f): f.size for w in self.factorizations.values() for f in w.factors}
        return dense - sum(factors.values())

    def add(self, name: str, made: FactoredWeight | str, qp: int | None = None) -> None:
        """Note what a weight became: factors and perhaps their qp, or the reason for none."""
        if qp is not None:
            self.overrides = (*self.overrides, (f"{escaped(name)}.factor*", {"qp": qp}))
        if isinstance(made, str):
            self.skipped[name] = made
        else:
            self.factorizations[name] = made

    def adapted(self, options: EncodeOptions) -> EncodeOptions:
        """Return options of the encoder, with what the factors need."""
        return replace(options, overrides=(*options.overrides, *self.overrides))

    def sort(self, names: Sequence[str]) -> None:
        """Put all in the order of `names`."""
        weights, skipped = self.factorizations, self.skipped
        self.factorizations = {name: weights[name] for name in names if name in weights}
        self.skipped = {name: skipped[name] for name in names if name in skipped}
