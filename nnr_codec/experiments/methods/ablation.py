"""Calibrations of which a part is taken away, to measure what it brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from ...calibration.moments import Calibration, ResultMoments


def without(calibration: Calibration, parts: Iterable[str]) -> Calibration:
    """Return a calibration without some of `PARTS`."""
    for part in parts:
        calibration = PARTS[part](calibration)
    return calibration


def _without_rows(known: Calibration) -> Calibration:
    return _with_result(known, lambda m: None if m.columns is None else replace(m, rows=None))


def _without_columns(known: Calibration) -> Calibration:
    return _with_result(known, lambda m: None if m.rows is None else replace(m, columns=None))


def _without_feedback(known: Calibration) -> Calibration:
    return replace(known, moments={}, result={})


def _with_result(
    known: Calibration, change: Callable[[ResultMoments], ResultMoments | None]
) -> Calibration:
    changed = {name: change(moments) for name, moments in known.result.items()}
    return replace(known, result={name: m for name, m in changed.items() if m is not None})


PARTS: Mapping[str, Callable[[Calibration], Calibration]] = {
    "rows": _without_rows,
    "columns": _without_columns,
    "feedback": _without_feedback,
}
"""What can be taken away: the feedback between rows or between columns, or all of it. What steps,
vectors and rates bring, options of the encoder tell: ``allocation``, ``nonweight_qp``,
``lambda_scale``."""
