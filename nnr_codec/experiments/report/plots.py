"""Plots of a subject: rate against accuracy, and rate against divergence, by matplotlib.

For the page, which is light or dark, a plot's text and lines take the page's colours: they are
drawn in colours of their own, which are then replaced by names of the style sheet's.
"""

from __future__ import annotations

import io
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..cells import Cell
from .results import SubjectResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["accuracy", "divergence"]
KINDS: Sequence[Kind] = ("accuracy", "divergence")

# Told apart in both modes and by those who see colours otherwise; the markers differ as well.
_COLOURS = ("#2f7ed8", "#e0702a", "#2aa18a", "#c2479b", "#b8860b", "#7a5fd0", "#8a8f98", "#cf4444")
_MARKERS = "osD^vPXd"
_SIZE = (4.9, 4.0)  # inches
INK, _RULE, _GROUND = "#1a1b1e", "#d9dbde", "#fefefd"
_VARIABLES = {INK: "var(--ink)", _RULE: "var(--rule)", _GROUND: "var(--card)"}
_LABEL_LENGTH = 40  # characters
_ROOM = 1.15  # of the span of what is shown, so that points do not touch the frame
DECADES = 5  # of divergence: what is nearly lossless would squeeze the rest
MOST_LOSS = 15.0
"""Points of accuracy beyond which a network is of no use: the plots end there."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn."""

    colour: str
    marker: str


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """Return the style of each method, the same in all plots of a plan."""
    return {
        name: Style(_COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)])
        for index, name in enumerate(methods)
    }


@dataclass(frozen=True)
class Mark:
    """A cell's place in a plot."""

    size: float  # percent of float32
    value: float  # drop of accuracy, as reports give it, or divergence
    identity: str  # of the mark in the SVG
    is_of_use: bool  # the network has lost little enough to be looked at


def plot(subject: SubjectResults, kind: Kind) -> Figure:
    """Draw a subject's methods: size in percent of float32, and drop of accuracy or divergence."""
    figure, axes = blank_plot()
    methods = marks_of(subject, kind)
    of_use = [mark for marks in methods.values() for mark in marks if mark.is_of_use]
    if of_use:  # what is far away would be drawn at the frame
        methods = {n: [m for m in marks if m.is_of_use] for n, marks in methods.items()}
    drawn = styles(subject.plan.method_names)
    legend: list[tuple[Any, str]] = []
    for name, marks in methods.items():
        style = drawn[name]
        sizes, values = [mark.size for mark in marks], [mark.value for mark in marks]
        axes.plot(sizes, values, color=style.colour, linewidth=1.8, zorder=2)
        for mark in marks:
            points = axes.plot(
                [mark.size], [mark.value], style.marker, color=style.colour, markersize=6.5,
                zorder=3, markeredgecolor=_GROUND, markeredgewidth=0.8,
            )  # fmt: skip
            points[0].set_gid(mark.identity)
        (line,) = axes.plot([], [], color=style.colour, marker=style.marker)
        legend.append((line, _label(name)))
    shown = [mark for marks in methods.values() for mark in marks]
    _arrange_sizes(axes, shown)
    if kind == "accuracy":
        _arrange_accuracy(axes, subject, shown)
    else:
        _arrange_divergence(axes, subject, shown)
    finish_plot(axes, legend)
    return figure


def blank_plot() -> tuple[Figure, Any]:
    """Return a figure of the size of all plots, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained", facecolor=_GROUND)
    return figure, figure.add_subplot(facecolor=_GROUND)


_DIVERGENCES = {
    "KL": "KL divergence, nats",
    "MSE": "mean squared error",
    "1-cos": "1 \N{MINUS SIGN} cosine",
}


def marks_of(subject: SubjectResults, kind: Kind) -> dict[str, list[Mark]]:
    """Return the marks of a subject's methods, of those that have any."""
    whole = subject.accuracy(subject.reference)
    marks: dict[str, list[Mark]] = {}
    # Above 0, and a few decades under the largest.
    most = max(measured.record["divergence"] or 0.0 for _, measured in subject.cells)
    floor = max(most / 10.0**DECADES, sys.float_info.min)
    for cell, measured in subject.cells:
        accuracy = subject.accuracy(measured)
        value = measured.record["divergence"]
        if kind == "accuracy":
            drop = None if whole is None or accuracy is None else whole - accuracy
            value = None if drop is None else max(drop, least_drop(subject))
        if value is None or (kind == "divergence" and value < floor):
            continue
        kept = accuracy is not None and (whole is None or whole - accuracy <= MOST_LOSS)
        mark = Mark(100 * measured.record["ratio"], value, point_identity(kind, cell), kept)
        marks.setdefault(cell.method, []).append(mark)
    return marks


def least_drop(subject: SubjectResults) -> float:
    """Return the smallest drop of accuracy that is drawn as one: half of what a sample counts; what
    is less, or none, or a gain, stands there."""
    return subject.scale / subject.facts.sample_count / 2 if subject.is_share else 0.005


def point_identity(kind: Kind, cell: Cell) -> str:
    """Return the identity of a cell's mark in a plot's SVG."""
    return f"point-{kind}-{zlib.crc32(cell.name.encode()):08x}"


def _arrange_sizes(axes: Any, shown: Sequence[Mark]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    if shown:
        sizes = [mark.size for mark in shown]
        axes.set_xlim(min(sizes) / _ROOM, max(sizes) * _ROOM)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("size, % of float32")


def _arrange_accuracy(axes: Any, subject: SubjectResults, shown: Sequence[Mark]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    name = _label(subject.facts.primary.replace("_db", "").replace("psnr", "PSNR"))
    axes.set_ylabel(f"drop of {name}, {subject.drop_unit}")
    axes.set_yscale("log")
    least = least_drop(subject)
    most = max([2 * least, *(mark.value for mark in shown)])
    room = max((most / least) ** (_ROOM - 1), 1.3)
    axes.set_ylim(most * room, least / room)  # better is higher
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.axhline(least, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        "none", (0.995, least), xycoords=("axes fraction", "data"), xytext=(0, 4),
        textcoords="offset points", ha="right", va="bottom", fontsize=8.5, color=INK,
    )  # fmt: skip


def _arrange_divergence(axes: Any, subject: SubjectResults, shown: Sequence[Mark]) -> None:
    axes.set_yscale("log")
    divergence = subject.facts.divergence
    axes.set_ylabel(_label(_DIVERGENCES.get(divergence, divergence)))
    if shown:
        low, high = min(mark.value for mark in shown), max(mark.value for mark in shown)
        room = max((high / low) ** (_ROOM - 1), 1.5)
        axes.set_ylim(low / room, high * room)


def _label(text: str) -> str:
    """Return a text as matplotlib takes it: of moderate length, and with no formula in it."""
    short = text if len(text) <= _LABEL_LENGTH else f"{text[:_LABEL_LENGTH]}…"
    return short.replace("$", r"\$")


def finish_plot(axes: Any, legend: Sequence[tuple[Any, str]]) -> None:
    """Give the axes their grid and colours, and the figure its legend, if there is one."""
    axes.grid(True, which="major", color=_RULE, linewidth=0.8, zorder=0)
    axes.tick_params(which="both", length=0, colors=INK, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(9.5)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_RULE)
    if legend:  # else there is nothing to draw: a lossless method alone has no divergence
        axes.figure.legend(
            *zip(*legend, strict=True), loc="outside upper left", ncols=2, frameon=False,
            fontsize=9, labelcolor=INK,
        )  # fmt: skip


def svg_text(figure: Figure) -> str:
    """Return a plot as SVG; the same plot gives the same text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nnr-eval"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def inline_svg(text: str, label: str, prefix: str, tooltips: Mapping[str, str]) -> str:
    """Return a plot's SVG for the page: its colours the page's, its marks with tooltips.

    Args:
        text: what `svg_text` gives.
        label: what the plot shows, for those who do not see it.
        prefix: before its identities, which are then the page's only ones.
        tooltips: texts, escaped for XML, by a mark's identity.
    """
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for identity, tip in tooltips.items():
        group = f'<g id="{identity}">'
        body = body.replace(group, f'<g class="mark"><title>{tip}</title>')
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r'xlink:href="#', f'xlink:href="#{prefix}', body)
    body = re.sub(r"url\(#", f"url(#{prefix}", body)
    body = re.sub(r'font: ([\d.]+px) [^;"]*', r"font-size: \1", body)
    head = f'<svg role="img" aria-label="{label}" class="plot"'
    return re.sub(r'<svg (?:width|height)="[^"]*"|<svg', lambda _: head, body, count=1)
