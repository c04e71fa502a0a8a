"""Tables of the rows that `conformance.trained` keeps."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
_RATIO = re.compile(r"\bratio=([\d.]+)")


@dataclass(frozen=True)
class Point:
    """A method at one operating point: means over the seeds.

    Attributes:
        drops: losses of accuracy, in points, by seed.
        divergence, bytes, parameters, macs: means; None where some are not known.
        of: the uncompressed network's row of these.
    """

    subject: str
    method: str
    label: str
    drops: Sequence[float]
    divergence: float | None
    bytes: float
    parameters: float
    macs: float | None
    of: Row

    @property
    def drop(self) -> float:
        """The mean loss of accuracy, in points."""
        return statistics.mean(self.drops)

    @property
    def ratio(self) -> float | None:
        """The ratio that its label names; None: it names none."""
        found = _RATIO.search(self.label)
        return None if found is None else float(found[1])

    def times(self, figure: str) -> str:
        """Return how many times smaller one of its figures is than the uncompressed network's."""
        value = getattr(self, figure)
        return "" if value is None else f"{self.of[figure] / value:.2f}"


def points(rows: Iterable[Row]) -> list[Point]:
    """Return rows that differ by their seeds alone as one, in the order of the first of each."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["subject"], row["method"], row["point"]), []).append(row)
    return [_point(*key, members) for key, members in groups.items()]


def _point(subject: str, method: str, label: str, rows: Sequence[Row]) -> Point:
    macs, divergences = ([row[name] for row in rows] for name in ("macs", "divergence"))
    return Point(
        subject,
        method,
        label,
        [100 * (row["of"]["score"] - row["score"]) for row in rows],
        None if None in divergences else statistics.mean(divergences),
        statistics.mean(row["bytes"] for row in rows),
        statistics.mean(row["parameters"] for row in rows),
        None if None in macs else statistics.mean(macs),
        rows[0]["of"],
    )


def row_table(rows: Iterable[Row]) -> str:
    """Return all points, network by network."""
    lines = [
        "| network | method | point | seeds | parameters ÷ | MACs ÷ | bytes | ÷ | drop | range |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for point in points(rows):
        low, high = min(point.drops), max(point.drops)
        spread = f"{low:.2f} … {high:.2f}" if len(point.drops) > 1 else ""
        lines.append(
            f"| {point.subject} | {point.method} | {point.label} | {len(point.drops)} "
            f"| {point.times('parameters')} | {point.times('macs')} | {point.bytes:.0f} "
            f"| {point.times('bytes')} | {point.drop:.2f} | {spread} |"
        )
    return "\n".join(lines)


def ratio_table(rows: Iterable[Row]) -> str:
    """Return the points whose labels name a ratio, network by network, a column for each ratio:
    the mean loss of accuracy in points, its range over the seeds, and the mean divergence."""
    known = [point for point in points(rows) if point.ratio is not None]
    tables = []
    for subject in dict.fromkeys(point.subject for point in known):
        own = [point for point in known if point.subject == subject]
        ratios = sorted({point.ratio for point in own if point.ratio is not None})
        lines = [
            f"| {subject} | " + " | ".join(f"{ratio:g}x" for ratio in ratios) + " |",
            "| --- |" + " ---: |" * len(ratios),
        ]
        for method, cells in _rows_by_ratio(own).items():
            lines.append(f"| {method} | " + " | ".join(cells.get(r, "-") for r in ratios) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _rows_by_ratio(known: Sequence[Point]) -> dict[str, dict[float | None, str]]:
    """Return rows by what they are called: the method, and what else its label says if a ratio
    comes several times."""
    rows: dict[str, dict[float | None, str]] = {}
    for method in dict.fromkeys(point.method for point in known):
        own = [point for point in known if point.method == method]
        is_one_row = len({point.ratio for point in own}) == len(own)
        for point in own:
            rest = "" if is_one_row else f", {_RATIO.sub('', point.label).strip(', ')}"
            rows.setdefault(method + rest, {})[point.ratio] = _loss(point)
    return rows


def _loss(point: Point) -> str:
    low, high = min(point.drops), max(point.drops)
    spread = f" ({low:.2f} … {high:.2f})" if f"{low:.2f}" != f"{high:.2f}" else ""
    divergence = "" if point.divergence is None else f"{point.divergence:.2g}"
    return f"{point.drop:.2f}{spread} / {divergence}".replace("-0.00", "0.00")


def best_table(rows: Iterable[Row], drops: Sequence[float]) -> str:
    """Return the fewest bytes of each method at some losses of accuracy."""
    lines = [
        "| network | method | " + " | ".join(f"≤ {drop:g} points" for drop in drops) + " |",
        "| --- | --- |" + " ---: |" * len(drops),
    ]
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points(rows):
        groups.setdefault((point.subject, point.method), []).append(point)
    for (subject, method), members in groups.items():
        cells = []
        for drop in drops:
            reached = [point for point in members if point.drop <= drop]
            best = min(reached, key=lambda point: point.bytes, default=None)
            cells.append(_best(best))
        lines.append(f"| {subject} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _best(point: Point | None) -> str:
    if point is None:
        return "-"
    work = f", MACs ÷ {point.times('macs')}" if point.macs not in (None, point.of["macs"]) else ""
    return f"{point.bytes:.0f} (÷ {point.times('bytes')}{work})"
