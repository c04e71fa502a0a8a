"""What `conformance.latency` measures of a network: methods, each at its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnr_codec import EncodeOptions
from nnr_codec.options import DecompositionOptions

KERNEL_FORMS = ("cp", "tucker2", "ht2")
OBJECTIVES = {"auto-macs": "macs", "auto-latency": "latency"}
METHODS = ("none", "lr", *KERNEL_FORMS, "joint", *OBJECTIVES)


@dataclass(frozen=True)
class Case:
    """A method at one setting.

    Attributes:
        method: one of `METHODS`.
        amount: the model's ratio of parameters, or the energy that each layer keeps; None: neither.
    """

    method: str
    amount: float | None = None

    @property
    def options(self) -> EncodeOptions:
        """The options of the encoder that decompose a model so."""
        values: dict[str, Any] = {"method": self.method, "compression_ratio": self.amount}
        if self.method in OBJECTIVES:
            objective = OBJECTIVES[self.method]
            values = {"method": "auto", "objective": objective, "energy": self.amount}
        return EncodeOptions(decomposition=DecompositionOptions(**values))


def cases(
    methods: Sequence[str], ratios: Sequence[float], energies: Sequence[float], has_kernels: bool
) -> list[Case]:
    """Return what is measured of a network; forms for kernels only if it has some."""
    chosen = []
    for method in methods:
        if method == "none":
            chosen.append(Case(method))
        elif method in OBJECTIVES:
            chosen += [Case(method, energy) for energy in energies]
        elif has_kernels or method not in KERNEL_FORMS:
            chosen += [Case(method, ratio) for ratio in ratios]
    return chosen
