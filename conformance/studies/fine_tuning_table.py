"""The table of `conformance.fine_tuning`: a row for all seeds of what was run alike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from conformance.studies.training_tasks import RunLog
from nnr_codec.cli.text import table

STATES = ("decomposed", "batch_norm", "tuned")


def summary(log: RunLog) -> str:
    """Return a table of what is in the log: means over the seeds, and the range at the end."""
    alike = itemgetter("validate", "subject", "rule", "ratio", "scheme", "steps", "learning_rate",
                       "batch", "smoothing")  # fmt: skip
    rows = []
    for (validate, subject, rule, ratio, scheme, steps, rate, *_), lines in log.groups(alike):
        rows.append([
            subject, "validation" if validate else "", rule, f"{ratio:g}", scheme, _in_all(lines),
            str(steps), f"{rate:g}", str(len(lines)), _cell(lines, "top1_uncompressed"),
            *(_cell(lines, f"{figure}_{state}") for state in STATES for figure in ("top1", "kl")),
            _range(lines),
        ])  # fmt: skip
    columns = ("subject", "judged by", "rule", "ratio", "scheme", "in all", "steps", "rate",
               "seeds", "uncompressed", "decomposed", "KL", "batch norm", "KL", "tuned", "KL",
               "range")  # fmt: skip
    return table(columns, rows)


def _in_all(lines: Sequence[dict[str, Any]]) -> str:
    """Return the ratio that is reached, the least of the seeds."""
    if any(line["parameters"] is None for line in lines):
        return "out of reach"
    return f"{min(line['of'] / line['parameters'] for line in lines):.2f}"


def _cell(lines: Sequence[dict[str, Any]], name: str) -> str:
    """Return the mean of a figure, to two decimals if it is in percent."""
    values = [line[name] for line in lines]
    if None in values:
        return "-"
    mean = statistics.mean(values)
    return f"{mean:.2f}" if name.startswith("top1") else f"{mean:.2g}"


def _range(lines: Sequence[dict[str, Any]]) -> str:
    """Return the least and the highest accuracy after training, or why there is none."""
    values = [line["top1_tuned"] for line in lines]
    if None not in values:
        return f"{min(values):.2f}-{max(values):.2f}"
    return next(str(line["failure"]) for line in lines if line["failure"] is not None)
