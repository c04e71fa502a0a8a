"""The page of results: one HTML file that needs nothing else, with a summary first."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from statistics import fmean

from ...report import size_text
from ..fingerprints import file_digest, plain_name
from .bd_rate import BdRate
from .bootstrap import LEVEL, marks_of_losses
from .markup import NONE, Shown, card, head, signed_text, table, whole_page, whole_text
from .plots import DECADES, KINDS, MOST_LOSS, Kind, inline_svg, point_identity
from .results import Results, SubjectResults
from .subject_tables import (
    NOT_FINITE,
    TIE,
    bounded_text,
    cell_table,
    dotted,
    loss_table,
    yardstick_table,
)

Plots = Mapping[tuple[str, Kind], str]
"""SVG of the plots, by subject and kind."""


def page(results: Results, plots: Plots) -> str:
    """Return the page."""
    parts = [_head(results), _failures(results)]
    if results.subjects:
        parts.append(_summary(results))
        if len(results.plan.methods) > 1:
            parts.append(_rates(results))
    parts += [_subject(subject, plots) for subject in results.subjects]
    parts.append(_notes(results))
    return whole_page(results.plan.title, "".join(parts))


def _head(results: Results) -> str:
    plan = results.plan
    links = "".join(_link(subject) for subject in results.subjects)
    return (
        f"{head(plan.title)}<p>{escape(plan.about)}</p>\n"
        f'<p class="meta"><code>{escape(results.run["command"])}</code> · {results.run["date"]} · '
        f"{len(results.cells)} cells, seed {plan.seed}</p>\n<nav>{links}</nav>\n"
    )


def _link(subject: SubjectResults) -> str:
    return f'<a href="#{_anchor(subject)}">{escape(subject.name)}</a>'


def _anchor(subject: SubjectResults) -> str:
    return f"s-{plain_name(subject.name)}"


def _failures(results: Results) -> str:
    if not results.failures:
        return ""
    lines = "".join(
        f"<li><b>{escape(reason)}</b><br>{escape(', '.join(names))}</li>"
        for reason, names in results.failed_names.items()
    )
    count = len(results.failures)
    title = f"{'One cell' if count == 1 else f'{count} cells'} failed"
    return card(title, f"<ul>{lines}</ul>", classes="card warn")


def _summary(results: Results) -> str:
    """Return the bytes of each method at one loss of accuracy, for all subjects."""
    plan = results.plan
    which = plan.drops.index(1.0) if 1.0 in plan.drops else 0
    rows = [_summary_row(subject, which) for subject in results.subjects]
    header = ["network", "float32", "accuracy", *(dotted(n, plan) for n in plan.method_names)]
    methods = "".join(
        f"<li>{dotted(method.name, plan)}"
        + (f' <span class="soft">{escape(method.about)}</span>' if method.about else "")
        + "</li>"
        for method in plan.methods
    )
    are_shares = all(subject.is_share for subject in results.subjects)
    points = "point" if are_shares else "point (of percent, or dB)"
    return card(
        "Summary",
        "<p>Size of the whole stream where the accuracy has dropped by "
        f"{plan.drops[which]:g} {points} at most: in bytes, and in percent of float32. "
        "The smallest of each network is marked, and with ≈ what the samples do not tell from "
        "it.</p>"
        f'{table(header, rows, stacks=True)}\n<ul class="methods">{methods}</ul>',
    )


def _summary_row(subject: SubjectResults, which: int) -> list[Shown]:
    whole = int(subject.reference.record["bytes"])
    accuracy = subject.accuracy(subject.reference)
    row = [
        Shown(_link(subject)),
        Shown(size_text(whole), whole),
        Shown(subject.accuracy_text(subject.reference), accuracy, title=subject.facts.primary),
    ]
    losses = {name: losses[which] for name, losses in subject.losses.items()}
    marks = marks_of_losses(losses)
    for name in subject.plan.method_names:
        loss = losses.get(name)
        if loss is None or loss.bytes is None:
            row.append(Shown(NONE, title="never within the loss" if loss else "not measured"))
            continue
        mark = marks.get(name, "")
        text = f"{bounded_text(loss, mark)}<small>{100 * loss.bytes / whole:.3g} %</small>"
        row.append(Shown(text, loss.bytes, mark, title=TIE if mark == "tie" else ""))
    return row


def _rates(results: Results) -> str:
    plan = results.plan
    names = [name for name in plan.method_names if name != plan.anchor]
    columns = {name: [s.bd_rates.get(name) for s in results.subjects] for name in names}
    rows = [
        [Shown(escape(subject.name)), *(_rate_cell(subject.bd_rates.get(name)) for name in names)]
        for subject in results.subjects
    ]
    if len(rows) > 1:
        rows.append([Shown("mean"), *(_mean_cell(rates) for rates in columns.values())])
    header = ["network", *(dotted(name, plan) for name in names)]
    return card(
        "BD-rate",
        "<p>Bytes at equal divergence from the uncompressed network, against "
        f"<b>{escape(plan.anchor)}</b>: less than 0 is smaller. Under each figure the interval of "
        f"divergence that it is over.</p>"
        f"{table(header, rows, stacks=True, last_is_mean=len(rows) > 1)}",
    )


def _rate_cell(rate: BdRate | None) -> Shown:
    if rate is None:
        return Shown(NONE, title="not measured")
    if rate.change is None:
        return Shown(f"{NONE}<small>{rate.reason}</small>")
    return _change_cell(rate.change, f"<small>{rate.low:.2g} … {rate.high:.2g}</small>")


def _mean_cell(rates: list[BdRate | None]) -> Shown:
    changes = [rate.change for rate in rates if rate is not None and rate.change is not None]
    if len(changes) < len(rates):
        return Shown(NONE, title="not for all networks")
    return _change_cell(fmean(changes))


def _change_cell(change: float, note: str = "") -> Shown:
    text = f"{signed_text(100 * change, 1)} %{note}"
    return Shown(text, change, "good" if change < 0 else "bad")


def _subject(subject: SubjectResults, plots: Plots) -> str:
    drops = ", ".join(f"{drop:g}" for drop in subject.plan.drops)
    return card(
        subject.name,
        f"{_figures(subject)}\n"
        f'<div class="plots">{"".join(_plot(subject, kind, plots) for kind in KINDS)}</div>\n'
        f"<h3>Bytes at an accuracy drop of at most {drops} {subject.drop_unit}</h3>\n"
        f"{loss_table(subject)}\n<h3>All cells</h3>\n{cell_table(subject)}\n"
        f"{yardstick_table(subject)}",
        identity=_anchor(subject),
    )


def _figures(subject: SubjectResults) -> str:
    facts = subject.facts
    figures = [
        (subject.accuracy_text(subject.reference), f"{facts.primary}, uncompressed"),
        (size_text(int(subject.reference.record["bytes"])), "as float32"),
        (whole_text(facts.parameters), "parameters"),
        (whole_text(facts.sample_count), "samples"),
    ]
    if facts.macs is not None:
        figures.append((whole_text(facts.macs), "MACs for a sample"))
    items = "".join(f"<li><b>{text}</b><span>{escape(what)}</span></li>" for text, what in figures)
    return f'<ul class="figures">{items}</ul>'


def _plot(subject: SubjectResults, kind: Kind, plots: Plots) -> str:
    tips = {}
    for cell, measured in subject.cells:
        record = measured.record
        text = NOT_FINITE
        if record["divergence"] is not None:
            text = (
                f"{size_text(record['bytes'])}, {100 * record['ratio']:.3g} % of float32, "
                f"{subject.facts.primary} {subject.accuracy_text(measured)}, "
                f"{subject.facts.divergence} {record['divergence']:.3g}"
            )
        name = ", ".join(filter(None, [cell.method, cell.label]))
        tips[point_identity(kind, cell)] = escape(f"{name}: {text}")
    label = escape(f"{subject.name}: size against {kind}")
    prefix = f"{_anchor(subject)}-{kind}-"
    return f"<figure>{inline_svg(plots[subject.name, kind], label, prefix, tips)}</figure>"


def _notes(results: Results) -> str:
    versions = ", ".join(f"{name} {text}" for name, text in results.run["versions"].items())
    return card(
        "How to read this",
        "<p>Sizes are those of whole streams, headers and all. Agreement is with the uncompressed "
        "network on the same samples.</p>\n"
        "<p><b>KL</b>: the divergence of the compressed network's class probabilities from the "
        "uncompressed one's, in nats, in the mean over the samples: 0 if nothing has changed, and "
        "it tells methods apart long before the accuracy does. (Where the outputs are no classes: "
        "the mean squared error, or 1 minus the cosine.) <b>BD-rate</b>: by how much more or fewer "
        "bytes a method takes at the same divergence, in the mean over the interval given: the "
        "mean difference of log bytes over log divergence, between monotone cubic curves through "
        "the points of each method that no other point of it beats in both. <b>Weight error</b>: "
        "squared error of all decoded weights over their energy; what it does to the network "
        "depends on the layer.</p>\n"
        "<p>Bytes at an accuracy drop: from the smallest measured point within the drop, "
        "interpolated towards the next smaller one; ≤ where none smaller was measured. Under it "
        f"the {100 * LEVEL:.0f} % interval of {results.plan.resamples} paired bootstrap sets of "
        "samples; methods whose intervals reach the best one's figure are ties. The plots show "
        f"what is within {MOST_LOSS:g} points of the uncompressed network, drops on a logarithmic "
        f"axis that ends at one sample, and of the divergence {DECADES} decades. Times are "
        "those of a run in which cells may have slowed each other down.</p>\n"
        f"<dl><dt>command</dt><dd><code>{escape(results.run['command'])}</code></dd>"
        f"<dt>date</dt><dd>{results.run['date']}</dd>"
        f"<dt>machine</dt><dd>{escape(results.run['machine'])}</dd>"
        f"<dt>versions</dt><dd>{escape(versions)}</dd>"
        f"{_hashes(results)}</dl>\n{_plan_text(results)}",
    )


def _hashes(results: Results) -> str:
    """Return the first digits of the SHA-256 of what the figures are of."""
    hashes = {"plan": file_digest(results.plan.path)}
    for subject in results.subjects:
        hashes[subject.name] = subject.facts.checkpoint
        hashes[f"{subject.name}, samples"] = subject.facts.samples
    listed = ", ".join(f"{escape(name)} <code>{text[:16]}</code>" for name, text in hashes.items())
    return f"<dt>SHA-256</dt><dd>{listed}</dd>"


def _plan_text(results: Results) -> str:
    """Return the plan as it stands, with the options of all methods."""
    text = results.plan.path.read_text(encoding="utf-8")
    return (
        "<details><summary>The plan, with the options of each method</summary>\n"
        f"<pre>{escape(text)}</pre></details>"
    )
