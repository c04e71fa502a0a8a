"""Calibrations and corrections of which a part is taken away, to measure what it brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from ...calibration.moments import Calibration, ResultMoments
from ...training.corrections import Corrections


def without(calibration: Calibration, parts: Iterable[str]) -> Calibration:
    """Return a calibration without some of `PARTS`."""
    for part in parts:
        calibration = PARTS[part](calibration)
    return calibration


def corrections_without(
    corrections: Corrections | None, parts: Iterable[str]
) -> Corrections | None:
    """Return corrections without some of `PARTS`."""
    if corrections is not None and "past" in parts:
        return corrections.without_moving()
    return corrections


def _without_rows(known: Calibration) -> Calibration:
    return _with_result(known, lambda m: None if m.columns is None else replace(m, rows=None))


def _without_columns(known: Calibration) -> Calibration:
    return _with_result(known, lambda m: None if m.rows is None else replace(m, columns=None))


def _without_feedback(known: Calibration) -> Calibration:
    return replace(known, moments={}, result={})


def _itself(known: Calibration) -> Calibration:
    return known


def _with_result(
    known: Calibration, change: Callable[[ResultMoments], ResultMoments | None]
) -> Calibration:
    changed = {name: change(moments) for name, moments in known.result.items()}
    return replace(known, result={name: m for name, m in changed.items() if m is not None})


PARTS: Mapping[str, Callable[[Calibration], Calibration]] = {
    "rows": _without_rows,
    "columns": _without_columns,
    "feedback": _without_feedback,
    "past": _itself,  # which is no part of the calibration
}
"""What can be taken away: the feedback between rows or between columns, or all of it; and that
weights make up for what quantization did to the layers before them. What steps,
vectors and rates bring, options of the encoder tell: ``allocation``, ``nonweight_qp``,
``lambda_scale``."""
