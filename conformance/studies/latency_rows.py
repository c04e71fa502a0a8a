"""The rows of `conformance.latency`: methods, each at its settings, and what is printed of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnr_codec import EncodeOptions
from nnr_codec.options import DecompositionOptions

KERNEL_FORMS = ("cp", "tucker2", "ht2")
OBJECTIVES = {"auto-macs": "macs", "auto-latency": "latency"}
METHODS = ("none", "lr", *KERNEL_FORMS, "joint", *OBJECTIVES)
COLUMNS = ("network", "samples", "method", "at", "forms", "parameters x", "MMACs", "factorized",
           "MACs x", "ms", "factorized", "time x", "quartiles", "layers", "faster",
           "least")  # fmt: skip


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
        if objective := OBJECTIVES.get(self.method):
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


def row_of(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of the table."""
    amount = figures["amount"]
    at = "" if amount is None else f"{amount:g}" + ("" if figures["method"] in OBJECTIVES else "x")
    head = (figures["network"], str(figures["samples"]), figures["method"], at)
    if "refused" in figures:
        return (*head, "refused", *[""] * (len(COLUMNS) - len(head) - 1))
    (parameters, fewer), (macs, less) = figures["parameters"], figures["macs"]
    seconds, factorized = figures["seconds"]
    lower, median, upper = figures["quotients"]
    layers = figures["layers"].values()
    return (
        *head,
        ", ".join(f"{form} {count}" for form, count in figures["forms"].items()),
        f"{parameters / fewer:.2f}",
        f"{macs / 1e6:.1f}",
        f"{less / 1e6:.1f}",
        f"{macs / less:.2f}",
        f"{1e3 * seconds:.2f}",
        f"{1e3 * factorized:.2f}",
        f"{median:.2f}",
        f"{lower:.2f}-{upper:.2f}",
        str(len(layers)),
        str(sum(quotient > 1 for quotient in layers)),
        f"{min(layers):.2f}" if layers else "",
    )


def summary(figures: Sequence[Mapping[str, Any]]) -> str:
    """Return for each method how many of the layers that it replaced are faster, over all rows."""
    faster: dict[str, list[bool]] = {}
    for row in figures:
        layers = row.get("layers", {}).values()
        faster.setdefault(row["method"], []).extend(quotient > 1 for quotient in layers)
    return "\n".join(
        f"{method}: {sum(layers)} of {len(layers)} layers are faster"
        for method, layers in faster.items()
        if layers
    )
