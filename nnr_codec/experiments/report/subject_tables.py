"""The tables of one subject on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ...report import size_text
from ..cells import Cell, Measured
from .bootstrap import BytesAtLoss
from .markup import NONE, Shown, signed_text, small_text, table, whole_text
from .plots import Style
from .results import SubjectResults


def dotted(name: str, drawn: Mapping[str, Style]) -> str:
    """Return a method's name with its colour."""
    return f'<span class="dot" style="background:{drawn[name].colour}"></span>{escape(name)}'


def loss_rows(
    subject: SubjectResults, losses: Mapping[str, Sequence[BytesAtLoss]], drawn: Mapping[str, Style]
) -> list[list[Shown]]:
    """Return a row for each method: its bytes at each loss, with their intervals."""
    best = [
        min((loss.bytes for loss in column if loss.bytes is not None), default=None)
        for column in zip(*losses.values(), strict=True)
    ]
    return [
        [
            Shown(dotted(name, drawn)),
            *(
                _loss_cell(loss, loss.bytes == least)
                for loss, least in zip(method_losses, best, strict=True)
            ),
        ]
        for name, method_losses in losses.items()
    ]


def _loss_cell(loss: BytesAtLoss, is_best: bool) -> Shown:
    if loss.bytes is None:
        return Shown(NONE, title="no point of the method is within this drop")
    low = NONE if loss.low is None else size_text(loss.low)
    high = "beyond" if loss.high is None else size_text(loss.high)
    bound = "≤ " if loss.is_bound else ""
    interval = "" if loss.is_bound and low == high else f"<small>{low} … {high}</small>"
    text = f"{bound}{size_text(loss.bytes)}{interval}"
    return Shown(text, loss.bytes, "best" if is_best else "")


def cell_rows(
    subject: SubjectResults, drawn: Mapping[str, Style]
) -> tuple[list[str], list[list[Shown]]]:
    """Return the header and the rows of all of a subject's cells."""
    facts = subject.facts
    scores = list(subject.reference.record["scores"])
    header = ["method", "point", "bytes", "bit/weight", "% of float32", *map(escape, scores)]
    header += [f"Δ {facts.primary}", "agreement, %", escape(facts.divergence)]
    header += ["weight error", "encode, s", "decode, s"]
    return header, [_cell_row(subject, drawn, *pair) for pair in subject.cells]


def _cell_row(
    subject: SubjectResults, drawn: Mapping[str, Style], cell: Cell, measured: Measured
) -> list[Shown]:
    record, scores = measured.record, subject.reference.record["scores"]
    whole, accuracy = subject.accuracy(subject.reference), subject.accuracy(measured)
    change = None if whole is None or accuracy is None else accuracy - whole
    parts = ", ".join(f"{part} {count}" for part, count in record["breakdown"].items())
    return [
        Shown(dotted(cell.method, drawn)),
        Shown(escape(cell.label)),
        Shown(whole_text(record["bytes"]), record["bytes"], title=parts),
        _number(record["bits_per_weight"], 3),
        _number(100 * record["ratio"], 2),
        *(_score(subject, record["scores"][name], name) for name in scores),
        Shown(NONE) if change is None else Shown(signed_text(change, 2), change),
        _number(100 * record["agreement"], 2),
        Shown(small_text(record["divergence"]), record["divergence"]),
        _weight_error(record),
        _number(record["encode_seconds"], 3),
        _number(record["decode_seconds"], 3),
    ]


def _weight_error(record: Mapping[str, Any]) -> Shown:
    if "weight_error" not in record:
        return Shown(NONE, title="the network has no weights")
    value = record["weight_error"]
    return Shown(small_text(value), value)


def _number(value: float, digits: int) -> Shown:
    return Shown(f"{value:.{digits}f}", value)


def _score(subject: SubjectResults, value: float | None, name: str) -> Shown:
    if value is None:
        return Shown(NONE)
    whole = subject.reference.record["scores"][name]
    scale = 100 if whole is not None and 0 <= whole <= 1 else 1
    return Shown(f"{scale * value:.2f}", value)


def yardstick_table(subject: SubjectResults, drawn: Mapping[str, Style]) -> str:
    """Return the entropy coder beside others on the same integers; empty if no cell has them."""
    rows = []
    for cell, measured in subject.cells:
        counts = measured.record["yardsticks"]
        if not counts:
            continue
        payload = counts["payload_bytes"]
        row = [Shown(dotted(cell.method, drawn)), Shown(escape(cell.label)), _count(payload)]
        for name in ("entropy_bytes", "ans_bytes"):
            change = 100 * (counts[name] / payload - 1)
            row += [_count(counts[name]), Shown(f"{signed_text(change, 1)} %", change)]
        rows.append(row)
    if not rows:
        return ""
    header = ["method", "point", "DeepCABAC", "static entropy", "", "ANS with tables", ""]
    return (
        "<details><summary>The entropy coder, beside others on the same integers</summary>\n"
        "<p>Bytes of all payloads, without the units' headers. Static entropy is that of each "
        "tensor's integers by itself, with no table to be sent; constriction's ANS coder pays for "
        f"its tables. Percentages: against DeepCABAC.</p>{table(header, rows, sortable=True)}"
        "</details>"
    )


def _count(value: int) -> Shown:
    return Shown(whole_text(value), value)
