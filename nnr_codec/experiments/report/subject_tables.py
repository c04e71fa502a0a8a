"""The tables of one subject on the page."""

from __future__ import annotations

from html import escape

from ...report import size_text
from ..cells import Cell, Measured
from ..plan import Plan
from .bootstrap import BytesAtLoss, marks_of_losses
from .markup import NONE, Shown, signed_text, small_text, table, whole_text
from .plots import styles
from .results import SubjectResults

NOT_FINITE = "outputs that are not finite"
TIE = "its interval and that of the best overlap: a tie"


def dotted(method: str, plan: Plan) -> str:
    """Return a method's name with its colour."""
    colour = styles(plan.method_names)[method].colour
    return f'<span class="dot" style="background:{colour}"></span>{escape(method)}'


def bounded_text(loss: BytesAtLoss, mark: str) -> str:
    """Return the bytes of a method that has some, and whether fewer might do, or it is a tie."""
    signs = "≈ " * (mark == "tie") + "≤ " * loss.is_bound
    return f"{signs}{size_text(loss.bytes or 0)}"


def loss_table(subject: SubjectResults) -> str:
    """Return a row for each method: its bytes at each loss, with their intervals."""
    columns = zip(*subject.losses.values(), strict=True)
    marks = [marks_of_losses(dict(zip(subject.losses, column, strict=True))) for column in columns]
    rows = [
        [Shown(dotted(name, subject.plan))]
        + [_loss_cell(loss, mark.get(name, "")) for loss, mark in zip(losses, marks, strict=True)]
        for name, losses in subject.losses.items()
    ]
    drops = (f"≤ {drop:g} {subject.drop_unit}" for drop in subject.plan.drops)
    return table(["method", *drops], rows, stacks=True)


def _loss_cell(loss: BytesAtLoss, mark: str) -> Shown:
    if loss.bytes is None:
        return Shown(NONE, title="no point of the method is within this drop")
    low = NONE if loss.low is None else size_text(loss.low)
    high = "beyond" if loss.high is None else size_text(loss.high)
    interval = "" if loss.is_bound and low == high else f"<small>{low} … {high}</small>"
    text = f"{bounded_text(loss, mark)}{interval}"
    return Shown(text, loss.bytes, mark, title=TIE if mark == "tie" else "")


def cell_table(subject: SubjectResults) -> str:
    """Return a row for each of a subject's cells."""
    facts = subject.facts
    header = ["method", "point", "bytes", "bit/weight", "% of float32"]
    header += map(escape, subject.reference.record["scores"])
    header += [f"Δ {escape(facts.primary)}", "agreement, %", escape(facts.divergence)]
    header += ["weight error", "encode, s", "decode, s"]
    return table(header, [_cell_row(subject, *pair) for pair in subject.cells], sortable=True)


def _cell_row(subject: SubjectResults, cell: Cell, measured: Measured) -> list[Shown]:
    record, scores = measured.record, subject.reference.record["scores"]
    divergence = record["divergence"]
    whole, accuracy = subject.accuracy(subject.reference), subject.accuracy(measured)
    change = None if whole is None or accuracy is None else accuracy - whole
    parts = ", ".join(f"{part} {count}" for part, count in record["breakdown"].items())
    no_weights = "" if "weight_error" in record else "the network has no weights"
    error = record.get("weight_error")
    return [
        Shown(dotted(cell.method, subject.plan)),
        Shown(escape(cell.label)),
        Shown(whole_text(record["bytes"]), record["bytes"], title=parts),
        _number(record["bits_per_weight"], 3),
        _number(record["ratio"], 2, 100),
        *(_number(record["scores"][name], 2, _scale(whole)) for name, whole in scores.items()),
        Shown(NONE) if change is None else Shown(signed_text(change, 2), change),
        _number(record["agreement"], 2, 100),
        Shown(small_text(divergence), divergence, title=NOT_FINITE if divergence is None else ""),
        Shown(NONE if no_weights else small_text(error), error, title=no_weights),
        _number(record["encode_seconds"], 3),
        _number(record["decode_seconds"], 3),
    ]


def _number(value: float | None, digits: int, scale: int = 1) -> Shown:
    return Shown(NONE if value is None else f"{scale * value:.{digits}f}", value)


def _scale(whole: float | None) -> int:
    """Return 100 if a score of the uncompressed network can be a share, which is in percent."""
    return 100 if whole is not None and 0 <= whole <= 1 else 1


def yardstick_table(subject: SubjectResults) -> str:
    """Return the entropy coder beside others on the same integers; empty if no cell has them."""
    rows = []
    for cell, measured in subject.cells:
        counts = measured.record["yardsticks"]
        if not counts:
            continue
        payload = counts["payload_bytes"]
        row = [Shown(dotted(cell.method, subject.plan)), Shown(escape(cell.label)), _count(payload)]
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
