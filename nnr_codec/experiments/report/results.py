"""The results of an experiment, and what is worked out from all cells of a subject together."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..cells import SCORE, Cell, Facts, Failure, Measured
from ..plan import Plan
from .bd_rate import BdRate, bd_rate
from .bootstrap import BytesAtLoss, bytes_at_losses, resampled_means
from .markup import NONE

_ENDLESS = 1e9


@dataclass(frozen=True)
class SubjectResults:
    """A subject's cells that were measured.

    Attributes:
        name: the subject's.
        plan: that of all subjects.
        facts: what holds for all cells.
        reference: the uncompressed network.
        methods: by name, in the plan's order; cells with falling bytes. Not empty.
    """

    name: str
    plan: Plan
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
    def drop_unit(self) -> str:
        """Unit of a loss of accuracy in reports."""
        return "points" if self.is_share else self.unit

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

    def accuracy_text(self, measured: Measured) -> str:
        """Return the accuracy of a cell with its unit."""
        accuracy = self.accuracy(measured)
        return NONE if accuracy is None else f"{accuracy:.2f} {self.unit}".rstrip()

    @cached_property
    def bd_rates(self) -> dict[str, BdRate]:
        """The BD-rates of the methods against the anchor, without its own."""
        points = {
            name: [
                (float(measured.record["divergence"]), float(measured.record["bytes"]))
                for _, measured in cells
                if measured.record["divergence"] is not None
            ]
            for name, cells in self.methods.items()
        }
        anchor = points.pop(self.plan.anchor, None)
        if anchor is None:
            return dict.fromkeys(points, BdRate(None, reason="anchor was not measured"))
        (interval,) = (s.bd_interval for s in self.plan.subjects if s.name == self.name)
        return {name: bd_rate(points[name], anchor, interval) for name in points}

    @cached_property
    def losses(self) -> dict[str, list[BytesAtLoss]]:
        """The bytes of the methods at the plan's losses of accuracy."""
        key = SCORE + self.facts.primary
        cells = [measured for group in self.methods.values() for _, measured in reversed(group)]
        columns = [one.samples[key].astype(np.float64) for one in [self.reference, *cells]]
        # A score without end, such as the PSNR of what is not finite, is as bad as can be.
        values = np.clip(self.scale * np.stack(columns, axis=1), -_ENDLESS, _ENDLESS)
        # The same samples for all of a subject's methods, others for another subject.
        seed = (self.plan.seed, zlib.crc32(self.name.encode()))
        resampled = resampled_means(values, self.plan.resamples, seed)
        means = values.mean(axis=0)
        results, start = {}, 1
        for name, group in self.methods.items():
            chosen = [0, *range(start, start + len(group))]
            start += len(group)
            sizes = [int(measured.record["bytes"]) for _, measured in reversed(group)]
            drops = self.plan.drops
            results[name] = bytes_at_losses(sizes, means[chosen], resampled[:, chosen], drops)
        return results


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

    @property
    def failed_names(self) -> dict[str, list[str]]:
        """The names of the cells, or of whole subjects, that failed, by the reason."""
        names: dict[str, dict[str, None]] = {}
        for cell, failure in self.failures:
            whole = isinstance(self.references[cell.subject.name], Failure)
            name = cell.subject.name if whole else cell.name
            names.setdefault(failure.reason, {})[name] = None
        return {reason: list(distinct) for reason, distinct in names.items()}

    @property
    def unmatched_globs(self) -> list[tuple[str, str]]:
        """The globs of a method's options that match no tensor of a subject, with their names."""
        return list(
            dict.fromkeys(
                (f"{cell.subject.name}/{cell.method}", glob)
                for cell, outcome in self.cells
                if isinstance(outcome, Measured)
                for glob in outcome.record["unmatched_globs"]
            )
        )

    @cached_property
    def subjects(self) -> list[SubjectResults]:
        """The subjects of which at least one cell was measured."""
        subjects = []
        for name, reference in self.references.items():
            facts = self.facts[name]
            methods: dict[str, list[tuple[Cell, Measured]]] = {}
            for cell, outcome in self.cells:
                if cell.subject.name == name and isinstance(outcome, Measured):
                    methods.setdefault(cell.method, []).append((cell, outcome))
            if methods and isinstance(reference, Measured) and isinstance(facts, Facts):
                for cells in methods.values():
                    cells.sort(key=lambda pair: -int(pair[1].record["bytes"]))
                subjects.append(SubjectResults(name, self.plan, facts, reference, methods))
        return subjects
