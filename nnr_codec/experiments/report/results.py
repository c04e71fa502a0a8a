"""The results of an experiment, and what is worked out from all cells of a subject together."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cells import SCORE, Cell, Facts, Failure, Measured
from ..plan import Plan
from .bd_rate import BdRate, bd_rate
from .bootstrap import BytesAtLoss, bytes_at_losses, resampled_means

_ENDLESS = 1e9


@dataclass(frozen=True)
class SubjectResults:
    """A subject's cells that were measured.

    Attributes:
        name: the subject's.
        bd_interval: divergences that BD-rates are over.
        facts: what holds for all cells.
        reference: the uncompressed network.
        methods: by name, in the plan's order; cells with falling bytes. Not empty.
    """

    name: str
    bd_interval: tuple[float, float]
    facts: Facts
    reference: Measured
    methods: Mapping[str, Sequence[tuple[Cell, Measured]]]

    @property
    def cells(self) -> list[tuple[Cell, Measured]]:
        """The cells of all methods, one method after the other."""
        return [pair for cells in self.methods.values() for pair in cells]

    @property
    def is_share(self) -> bool:
        """Whether the accuracy is a share, given in percent; else it has another unit."""
        values = self.reference.samples[SCORE + self.facts.primary]
        return bool(np.min(values) >= 0 and np.max(values) <= 1)

    @property
    def scale(self) -> float:
        """What the accuracy is multiplied by in reports."""
        return 100.0 if self.is_share else 1.0

    @property
    def unit(self) -> str:
        """Unit of the accuracy in reports."""
        if self.is_share:
            return "%"
        return "dB" if self.facts.primary.endswith("_db") else ""

    def accuracy(self, measured: Measured) -> float | None:
        """Return the accuracy of a cell as reports give it; None: not finite."""
        score: float | None = measured.record["scores"][self.facts.primary]
        return None if score is None else self.scale * score


@dataclass(frozen=True)
class Results:
    """The results of a plan.

    Attributes:
        plan: the plan.
        cells: what became of each, in the plan's order.
        references: what became of the uncompressed networks, by subject.
        facts: what holds for the subjects' cells, by subject.
        run: command, date, versions, and the like: texts by name.
    """

    plan: Plan
    cells: Sequence[tuple[Cell, Measured | Failure]]
    references: Mapping[str, Measured | Failure]
    facts: Mapping[str, Facts | Failure]
    run: Mapping[str, Any]

    @property
    def failures(self) -> list[tuple[Cell, Failure]]:
        """The cells that failed, in order."""
        return [(cell, outcome) for cell, outcome in self.cells if isinstance(outcome, Failure)]

    def subjects(self) -> Iterator[SubjectResults]:
        """Yield the subjects of which at least one cell was measured."""
        for name, reference in self.references.items():
            facts = self.facts[name]
            interval = next(s.bd_interval for s in self.plan.subjects if s.name == name)
            methods: dict[str, list[tuple[Cell, Measured]]] = {}
            for cell, outcome in self.cells:
                if cell.subject.name == name and isinstance(outcome, Measured):
                    methods.setdefault(cell.method, []).append((cell, outcome))
            if methods and isinstance(reference, Measured) and isinstance(facts, Facts):
                for cells in methods.values():
                    cells.sort(key=lambda pair: -int(pair[1].record["bytes"]))
                yield SubjectResults(name, interval, facts, reference, methods)


def bd_rates(subject: SubjectResults, anchor: str) -> dict[str, BdRate]:
    """Return the BD-rates of a subject's methods against the anchor, without its own."""
    points = {
        name: [
            (float(measured.record["divergence"]), float(measured.record["bytes"]))
            for _, measured in cells
            if measured.record["divergence"] is not None
        ]
        for name, cells in subject.methods.items()
    }
    if anchor not in points:
        return dict.fromkeys(points, BdRate(None, reason="anchor was not measured"))
    others = [name for name in points if name != anchor]
    return {name: bd_rate(points[name], points[anchor], subject.bd_interval) for name in others}


def losses_of(subject: SubjectResults, plan: Plan) -> dict[str, list[BytesAtLoss]]:
    """Return the bytes of a subject's methods at the plan's losses of accuracy."""
    key = SCORE + subject.facts.primary
    cells = [measured for group in subject.methods.values() for _, measured in reversed(group)]
    columns = [measured.samples[key].astype(np.float64) for measured in [subject.reference, *cells]]
    # A score without end, such as the PSNR of what is not finite, is as bad as can be.
    values = np.clip(subject.scale * np.stack(columns, axis=1), -_ENDLESS, _ENDLESS)
    # The same samples for all of a subject's methods, others for another subject.
    seed = (plan.seed, zlib.crc32(subject.name.encode()))
    resampled = resampled_means(values, plan.resamples, seed)
    means = values.mean(axis=0)
    results, start = {}, 1
    for name, group in subject.methods.items():
        chosen = [0, *range(start, start + len(group))]
        start += len(group)
        sizes = [int(measured.record["bytes"]) for _, measured in reversed(group)]
        results[name] = bytes_at_losses(sizes, means[chosen], resampled[:, chosen], plan.drops)
    return results
