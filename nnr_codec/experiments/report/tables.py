"""The results as plain data: rows for CSV, and a JSON document."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ..cells import Cell, Facts, Failure, Measured
from ..measures.weight_errors import ERRORS
from .results import Results

_FIRST = ("subject", "method", "point", "status", "bytes", "bits_per_weight", "ratio")
_JUDGED = ("agreement", "divergence", "divergence_kind", "samples", "parameters", "macs")
_PLAN = ("title", "about", "seed", "resamples", "drops", "anchor")
_YARDSTICKS = ("payload_bytes", "entropy_bytes", "ans_bytes")
TIMES = ("encode_seconds", "decode_seconds", "evaluate_seconds")
"""Columns that differ from run to run."""


def rows(results: Results) -> list[dict[str, Any]]:
    """Return a row for each uncompressed network and each cell; what does not apply is absent.

    ``ratio`` is bytes over those of float32; ``parameters`` and ``macs`` are those of layers that
    run on factors, where a method decomposes. ``weight_error``, ``kernel_error`` and
    ``decomposed_error`` are relative squared errors of the decoded, dense weights
    (:mod:`..measures.weight_errors`). Scores have their names, and values as the metric
    gives them (shares from 0 to 1).
    """
    table_rows: list[dict[str, Any]] = []
    last = None
    for cell, outcome in results.cells:
        name = cell.subject.name
        facts = results.facts[name]
        if name != last:
            table_rows.append(_row(Cell(cell.subject), results.references[name], facts))
            last = name
        table_rows.append(_row(cell, outcome, facts))
    return table_rows


def _columns(scores: Iterable[str] = ()) -> list[str]:
    return [*_FIRST, *scores, *_JUDGED, *ERRORS, *_YARDSTICKS, *TIMES]


def _row(cell: Cell, outcome: Measured | Failure, facts: Facts | Failure) -> dict[str, Any]:
    row: dict[str, Any] = {
        "subject": cell.subject.name,
        "method": cell.method,
        "point": cell.label,
        "status": "failed" if isinstance(outcome, Failure) else "measured",
    }
    if isinstance(outcome, Failure) or isinstance(facts, Failure):
        return row
    record = outcome.record
    of_subject = {
        "divergence_kind": facts.divergence,
        "samples": facts.sample_count,
        "parameters": facts.parameters,
        "macs": facts.macs,
    }
    columns = of_subject | record["scores"] | dict(record) | record.get("yardsticks", {})
    return row | {name: columns[name] for name in _columns(record["scores"]) if name in columns}


def csv_text(results: Results) -> str:
    """Return the rows as CSV, with a header; numbers as Python writes them."""
    table = rows(results)
    scores = dict.fromkeys(name for row in table for name in row if name not in _columns())
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(scores), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def document(results: Results) -> dict[str, Any]:
    """Return everything as JSON-ready data."""
    plan = results.plan
    breakdowns = {
        cell.name: dict(measured.record["breakdown"])
        for cell, measured in results.cells
        if isinstance(measured, Measured) and measured.record["breakdown"]
    }
    return {
        "plan": {"file": plan.path.name} | {name: getattr(plan, name) for name in _PLAN},
        "run": dict(results.run),
        "cells": rows(results),
        "breakdowns": breakdowns,
        "bd_rates": [
            {"subject": subject.name, "method": name, **asdict(rate)}
            for subject in results.subjects
            for name, rate in subject.bd_rates.items()
        ],
        "bytes_at_loss": [
            {"subject": subject.name, "method": name, **asdict(loss)}
            for subject in results.subjects
            for name, losses in subject.losses.items()
            for loss in losses
        ],
        "failures": [{"cell": cell.name, **asdict(why)} for cell, why in results.failures],
    }
