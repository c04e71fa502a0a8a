"""The plot of bytes against operations, of the rows that `conformance.trained` keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from conformance.studies.trained_table import Point, Row, points
from nnr_codec.experiments.report.plots import blank_plot, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def front(candidates: Iterable[Point]) -> list[Point]:
    """Return the points of which none has fewer bytes at as many operations or fewer, by rising
    operations; all of them known."""
    best: list[Point] = []
    for point in sorted(candidates, key=lambda p: (p.macs, p.bytes)):
        if not best or point.bytes < best[-1].bytes:
            best.append(point)
    return best


def pareto_plot(rows: Sequence[Row], subject: str, drop: float) -> Figure:
    """Draw a network's points within a drop of accuracy, in points, and their front."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = blank_plot()
    of_network = [p for p in points(rows) if p.subject == subject and p.macs is not None]
    within = [point for point in of_network if point.drop <= drop]
    for method, style in styles(list(dict.fromkeys(p.method for p in of_network))).items():
        members = [point for point in within if point.method == method]
        if not members:
            continue
        axes.plot(*_places(members), style.marker, color=style.colour, label=method)
    if len(best := front(within)) > 1:
        axes.plot(*_places(best), "-", color="grey", drawstyle="steps-post", label="front")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("million multiply-accumulates an image")
    axes.set_ylabel("kB of the bitstream")
    figure.suptitle(f"{subject}: loss of accuracy of {drop:g} point(s) at most", fontsize="medium")
    axes.legend(fontsize="x-small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def _places(members: Iterable[Point]) -> tuple[list[float], list[float]]:
    pairs = [((point.macs or 0.0) / 1e6, point.bytes / 1000) for point in members]
    return [work for work, _ in pairs], [size for _, size in pairs]
