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
        qps: of tensors, by name, that factors were compared with: those that stay dense keep them.
    """

    factorizations: dict[str, FactoredWeight] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    qps: dict[str, int] = field(default_factory=dict)

    @property
    def saved(self) -> int:
        """Parameters that the factors have less than the weights; shared ones count once."""
        dense = sum(math.prod(weight.shape) for weight in self.factorizations.values())
        factors = {id(f): f.size for w in self.factorizations.values() for f in w.factors}
        return dense - sum(factors.values())

    def add(self, name: str, made: FactoredWeight | str, qps: Sequence[int] = ()) -> None:
        """Note what a weight became: factors and perhaps the qp of each, or the reason for none."""
        self.overrides += tuple(
            (escaped(f"{name}.factor{index}"), {"qp": qp}) for index, qp in enumerate(qps)
        )
        if isinstance(made, str):
            self.skipped[name] = made
        else:
            self.factorizations[name] = made

    def adapted(self, options: EncodeOptions) -> EncodeOptions:
        """Return options of the encoder, with what the factors need; those given win for others."""
        qps = {n: {"qp": qp} for n, qp in self.qps.items() if n not in self.factorizations}
        adapted = options.with_own(qps)
        return replace(adapted, overrides=(*adapted.overrides, *self.overrides))

    def sort(self, names: Sequence[str]) -> None:
        """Put all in the order of `names`."""
        weights, skipped = self.factorizations, self.skipped
        self.factorizations = {name: weights[name] for name in names if name in weights}
        self.skipped = {name: skipped[name] for name in names if name in skipped}
