"""The table of `conformance.latency`, and what stands below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conformance.studies.latency_cases import OBJECTIVES

COLUMNS = ("network", "samples", "method", "at", "forms", "parameters x", "MMACs", "factorized",
           "MACs x", "ms", "factorized", "time x", "quartiles", "layers", "faster",
           "least")  # fmt: skip


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
