"""The page of a search for a target: what each stream that it saw took, and lost."""

from __future__ import annotations

import math
import sys
from html import escape
from typing import TYPE_CHECKING, Any

from ...report import Evaluation, SearchReport, size_text
from .markup import NONE, Shown, card, head, signed_text, small_text, table, whole_page, whole_text
from .plots import INK, blank_plot, finish_plot, inline_svg, styles, svg_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOSSES = {"max_nmse": "NMSE", "max_kl": "KL divergence, nats", "max_drop": "drop of the score"}
_KEPT, _OTHERS = "kept", "seen"


def search_page(search: SearchReport, elements: int, source: str) -> str:
    """Return the page.

    Args:
        search: what the search saw.
        elements: of the model.
        source: name of the model.
    """
    title = f"{source}: {search.target.replace('_', ' ')} {search.bound:g}"
    tips = {_identity(one): _tip(one, search) for one in search.evaluations}
    figure = svg_text(search_plot(search))
    label = escape(f"{source}: size against {_loss_name(search)}")
    plot = f"<figure>{inline_svg(figure, label, 'search-', tips)}</figure>"
    reference = ""
    if search.reference is not None:
        reference = f"<p>Score of the model itself: {search.reference:.6g}.</p>\n"
    body = f'{reference}<div class="plots">{plot}</div>\n{_table(search, elements)}'
    return whole_page(title, head(title) + card("Streams that the search saw", body))


def search_plot(search: SearchReport) -> Figure:
    """Draw size against loss; against NMSE where the target is one of bytes."""
    figure, axes = blank_plot()
    drawn = styles([_KEPT, _OTHERS])
    points = sorted(((x, y, one) for one in search.evaluations if (x := one.bytes) is not None
                    and math.isfinite(y := _height(one))), key=lambda point: point[:2])  # fmt: skip
    line = drawn[_OTHERS]
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=line.colour, zorder=2)
    for x, y, one in points:
        style = drawn[_KEPT if one == search.met else _OTHERS]
        (mark,) = axes.plot([x], [y], style.marker, color=style.colour, markersize=6.5, zorder=3)
        mark.set_gid(_identity(one))
    _arrange(axes, search, [y for _, y, _ in points])
    legend: list[tuple[Any, str]] = []
    for name, style in drawn.items():
        (line_,) = axes.plot([], [], style.marker, color=style.colour)
        legend.append((line_, name))
    finish_plot(axes, legend)
    return figure


def _arrange(axes: Any, search: SearchReport, heights: list[float]) -> None:
    """Say what the axes are, and mark the bound."""
    axes.set_xlabel("size, bytes")
    axes.set_ylabel(_loss_name(search))
    draw = axes.axhline if search.target in _LOSSES else axes.axvline
    draw(search.bound, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    if heights and min(heights) > 0:
        axes.set_yscale("log")


def _loss_name(search: SearchReport) -> str:
    return _LOSSES.get(search.target, "NMSE")


def _height(seen: Evaluation) -> float:
    """Return the loss; for a target of bytes the NMSE."""
    values = (seen.loss, seen.nmse, math.inf)
    return next(value for value in values if value is not None)


def _identity(seen: Evaluation) -> str:
    return f"offset{seen.qp_offset}{'-corrected' * seen.is_corrected}"


def _tip(seen: Evaluation, search: SearchReport) -> str:
    height = _height(seen)
    loss = f", {_loss_name(search)} {small_text(height)}" if height < math.inf else ""
    size = "no stream" if seen.bytes is None else size_text(seen.bytes)
    corrected = ", corrected" if seen.is_corrected else ""
    return escape(f"qp offset {seen.qp_offset:+d}{corrected}: {size}{loss}")


def _table(search: SearchReport, elements: int) -> str:
    header = ["qp offset", "bytes", "bits per element", "profile"]
    header.append(escape(_loss_name(search)))
    rows = [_row(one, search, elements) for one in search.evaluations]
    return table(header, rows, sortable=True)


def _row(seen: Evaluation, search: SearchReport, elements: int) -> list[Shown]:
    mark = "best" if seen == search.met else ""
    offset = Shown(signed_text(seen.qp_offset, 0), seen.qp_offset, mark, seen.failure or "")
    if seen.bytes is None:
        return [offset, *(Shown(NONE) for _ in range(4))]
    bits = 8 * seen.bytes / elements if elements else 0.0
    loss = _height(seen)
    return [
        offset,
        Shown(whole_text(seen.bytes), seen.bytes, mark),
        Shown(f"{bits:.3f}", bits),
        Shown(str(seen.profile), seen.profile),
        Shown(small_text(loss if loss < math.inf else None), min(loss, sys.float_info.max)),
    ]
