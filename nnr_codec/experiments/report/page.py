"""The page of results: one HTML file that needs nothing else, with a summary first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from statistics import fmean

from ...report import size_text
from ..cells import Facts
from ..plan import Plan
from .bd_rate import BdRate
from .bootstrap import LEVEL, BytesAtLoss
from .markup import NONE, Shown, signed_text, table, whole_text
from .plots import DECADES, KINDS, MOST_LOSS, Kind, Style, inline_svg, point_identity, styles
from .results import Results, SubjectResults, bd_rates, losses_of
from .subject_tables import cell_rows, dotted, loss_rows, yardstick_table

Losses = Mapping[str, Sequence[BytesAtLoss]]
"""Of a subject, by method."""
Plots = Mapping[tuple[str, Kind], str]
"""SVG of the plots, by subject and kind."""


def page(results: Results, plots: Plots) -> str:
    """Return the page."""
    subjects = list(results.subjects())
    drawn = styles([method.name for method in results.plan.methods])
    losses = {subject.name: losses_of(subject, results.plan) for subject in subjects}
    rates = {subject.name: bd_rates(subject, results.plan.anchor) for subject in subjects}
    parts = [
        _head(results, subjects),
        _failures(results),
        _summary(results, losses, drawn) if subjects else "",
        _rates(results, rates, drawn) if len(results.plan.methods) > 1 and subjects else "",
        *(_subject(results.plan, s, plots, losses[s.name], drawn) for s in subjects),
        _notes(results),
    ]
    style, script = (files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
                     for name in ("page.css", "page.js"))  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(results.plan.title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(parts)}</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _head(results: Results, subjects: Sequence[SubjectResults]) -> str:
    plan = results.plan
    links = "".join(f'<a href="#{_anchor(s.name)}">{escape(s.name)}</a>' for s in subjects)
    return (
        f'<div class="head"><h1>{escape(plan.title)}</h1>'
        '<button id="theme" type="button">Light / dark</button></div>\n'
        f"<p>{escape(plan.about)}</p>\n"
        f'<p class="meta"><code>{escape(results.run["command"])}</code> · {results.run["date"]} · '
        f"{len(results.cells)} cells, seed {plan.seed}</p>\n<nav>{links}</nav>\n"
    )


def _failures(results: Results) -> str:
    if not results.failures:
        return ""
    names: dict[str, list[str]] = {}
    for cell, failure in results.failures:
        names.setdefault(failure.reason, []).append(cell.name)
    lines = "".join(
        f"<li><b>{escape(reason)}</b><br>{escape(', '.join(cells))}</li>"
        for reason, cells in names.items()
    )
    count = len(results.failures)
    cells = "One cell" if count == 1 else f"{count} cells"
    return f'<section class="card warn"><h2>{cells} failed</h2><ul>{lines}</ul></section>\n'


def _summary(results: Results, losses: Mapping[str, Losses], drawn: Mapping[str, Style]) -> str:
    """The bytes of each method at one loss of accuracy, for all subjects."""
    drops = results.plan.drops
    which = drops.index(1.0) if 1.0 in drops else 0
    names = [method.name for method in results.plan.methods]
    subjects = list(results.subjects())
    rows = [_summary_row(subject, losses[subject.name], names, which) for subject in subjects]
    header = ["network", "float32", "accuracy", *(dotted(name, drawn) for name in names)]
    methods = "".join(
        f"<li>{dotted(method.name, drawn)}"
        + (f' <span class="soft">{escape(method.about)}</span>' if method.about else "")
        + "</li>"
        for method in results.plan.methods
    )
    units = {s.unit for s in subjects}
    points = "point" if units <= {"%"} else "point (of percent, or dB)"
    return (
        '<section class="card"><h2>Summary</h2>\n'
        f"<p>Size of the whole stream where the accuracy has dropped by {drops[which]:g} {points} "
        "at most: in bytes, and in percent of float32. The smallest of each network is marked.</p>"
        f'{table(header, rows)}\n<ul class="methods">{methods}</ul></section>\n'
    )


def _summary_row(
    subject: SubjectResults, losses: Losses, names: Sequence[str], which: int
) -> list[Shown]:
    whole = int(subject.reference.record["bytes"])
    accuracy = subject.accuracy(subject.reference) or 0.0
    row = [
        Shown(f'<a href="#{_anchor(subject.name)}">{escape(subject.name)}</a>'),
        Shown(size_text(whole), whole),
        Shown(f"{accuracy:.2f} {subject.unit}", accuracy, title=subject.facts.primary),
    ]
    sizes = {name: losses[name][which].bytes for name in losses}
    least = min((count for count in sizes.values() if count is not None), default=None)
    for name in names:
        count = sizes.get(name)
        if count is None:
            reason = "never within the loss" if name in sizes else "not measured"
            row.append(Shown(NONE, title=reason))
            continue
        bound = "≤ " if losses[name][which].is_bound else ""
        text = f"{bound}{size_text(count)}<small>{100 * count / whole:.3g} %</small>"
        row.append(Shown(text, count, "best" if count == least else ""))
    return row


def _rates(
    results: Results, rates: Mapping[str, Mapping[str, BdRate]], drawn: Mapping[str, Style]
) -> str:
    anchor = results.plan.anchor
    names = [method.name for method in results.plan.methods if method.name != anchor]
    rows = [
        [Shown(escape(name)), *(_rate_cell(changes.get(method)) for method in names)]
        for name, changes in rates.items()
    ]
    if len(rows) > 1:
        rows.append([Shown("mean"), *(_mean_cell(method, rates) for method in names)])
    header = ["network", *(dotted(name, drawn) for name in names)]
    return (
        '<section class="card"><h2>BD-rate</h2>\n'
        f"<p>Bytes at equal divergence from the uncompressed network, against "
        f"<b>{escape(anchor)}</b>: less than 0 is smaller. Under each figure the interval of "
        "divergence that it is over.</p>"
        f"{table(header, rows, last_is_mean=len(rows) > 1)}</section>\n"
    )


def _rate_cell(rate: BdRate | None) -> Shown:
    if rate is None:
        return Shown(NONE, title="not measured")
    if rate.change is None:
        return Shown(f"{NONE}<small>{rate.reason}</small>")
    text = f"{signed_text(100 * rate.change, 1)} %"
    interval = f"<small>{rate.low:.2g} … {rate.high:.2g}</small>"
    return Shown(text + interval, rate.change, "good" if rate.change < 0 else "bad")


def _mean_cell(method: str, rates: Mapping[str, Mapping[str, BdRate]]) -> Shown:
    changes = [methods[method].change for methods in rates.values() if method in methods]
    known = [change for change in changes if change is not None]
    if not known or len(known) < len(rates):
        return Shown(NONE, title="not for all networks")
    mean = fmean(known)
    return Shown(f"{signed_text(100 * mean, 1)} %", mean, "good" if mean < 0 else "bad")


def _subject(
    plan: Plan, subject: SubjectResults, plots: Plots, losses: Losses, drawn: Mapping[str, Style]
) -> str:
    drops = ", ".join(f"{drop:g}" for drop in plan.drops)
    unit = "points" if subject.is_share else subject.unit
    loss_head = ["method", *(f"≤ {drop:g} {unit}" for drop in plan.drops)]
    loss_table = table(loss_head, loss_rows(subject, losses, drawn))
    header, rows = cell_rows(subject, drawn)
    yardsticks = yardstick_table(subject, drawn)
    return (
        f'<section class="card" id="{_anchor(subject.name)}"><h2>{escape(subject.name)}</h2>\n'
        f"{_figures(subject)}\n"
        f'<div class="plots">{"".join(_plot(subject, kind, plots) for kind in KINDS)}</div>\n'
        f"<h3>Bytes at an accuracy drop of at most {drops} {unit}</h3>\n{loss_table}\n"
        f"<h3>All cells</h3>\n{table(header, rows, sortable=True)}\n{yardsticks}</section>\n"
    )


def _figures(subject: SubjectResults) -> str:
    facts: Facts = subject.facts
    accuracy = subject.accuracy(subject.reference) or 0.0
    figures = [
        (f"{accuracy:.2f} {subject.unit}", f"{facts.primary}, uncompressed"),
        (size_text(int(subject.reference.record["bytes"])), "as float32"),
        (whole_text(facts.parameters), "parameters"),
        (whole_text(facts.sample_count), "samples"),
    ]
    if facts.macs is not None:
        figures.append((whole_text(facts.macs), "MACs for a sample"))
    items = "".join(f"<li><b>{text}</b><span>{label}</span></li>" for text, label in figures)
    return f'<ul class="figures">{items}</ul>'


def _plot(subject: SubjectResults, kind: Kind, plots: Plots) -> str:
    unit = subject.unit
    tips = {}
    for cell, measured in subject.cells:
        record, accuracy = measured.record, subject.accuracy(measured)
        accuracy_text = NONE if accuracy is None else f"{accuracy:.2f}"
        text = "outputs that are not finite"
        if record["divergence"] is not None:
            text = (
                f"{size_text(record['bytes'])}, {100 * record['ratio']:.3g} % of float32, "
                f"{subject.facts.primary} {accuracy_text} {unit}, "
                f"{subject.facts.divergence} {record['divergence']:.3g}"
            )
        name = ", ".join(filter(None, [cell.method, cell.label]))
        tips[point_identity(kind, cell)] = escape(f"{name}: {text}")
    label = escape(f"{subject.name}: size against {kind}")
    prefix = f"{_anchor(subject.name)}-{kind}-"
    return f"<figure>{inline_svg(plots[subject.name, kind], label, prefix, tips)}</figure>"


def _notes(results: Results) -> str:
    versions = ", ".join(f"{name} {text}" for name, text in results.run["versions"].items())
    return (
        '<section class="card"><h2>How to read this</h2>\n'
        "<p>Sizes are those of whole streams, headers and all. Divergence and agreement are with "
        "the uncompressed network on the same samples. Weight error: squared error of all decoded "
        "weights over their energy. BD-rate: the mean difference of log bytes "
        "over log divergence, between monotone cubic curves through the points of each method that "
        "no other point of it beats in both.</p>\n"
        "<p>Bytes at an accuracy drop: from the smallest measured point within the drop, "
        "interpolated towards the next smaller one; ≤ where none smaller was measured. Under it "
        f"the {100 * LEVEL:.0f} % interval of {results.plan.resamples} paired bootstrap sets of "
        "samples. The plots show "
        f"what is within {MOST_LOSS:g} points of the uncompressed network, and of the divergence "
        f"{DECADES} decades. Times are "
        "those of a run in which cells may have slowed each other down.</p>\n"
        f"<dl><dt>command</dt><dd><code>{escape(results.run['command'])}</code></dd>"
        f"<dt>date</dt><dd>{results.run['date']}</dd>"
        f"<dt>machine</dt><dd>{escape(results.run['machine'])}</dd>"
        f"<dt>versions</dt><dd>{escape(versions)}</dd></dl></section>\n"
    )


def _anchor(name: str) -> str:
    return "s-" + "".join(c if c.isalnum() else "-" for c in name)
