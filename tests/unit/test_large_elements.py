"""The elements of a tensor that are not near zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnr_codec.quantize import large_elements as module
from nnr_codec.quantize.feedback import ErrorFeedback, error_feedback
from nnr_codec.quantize.large_elements import LargeElements, large_elements


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.05, shape)


def found_in(values: np.ndarray, feedback: ErrorFeedback | None = None) -> LargeElements | None:
    return large_elements(values, float(np.abs(values).max(initial=0)), feedback)


@pytest.mark.parametrize("piece", [999, 1 << 20])
def test_of_normal_ones(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    found = found_in(normal(200, 300))
    assert found.deviation == pytest.approx(0.05, rel=0.02)
    # Of those below a quarter of the deviation, a fifth of all, two thirds do not count.
    assert found.count == pytest.approx(0.868 * 60000, rel=0.01)
    assert found.felt == 1


def test_zeros_beside_them_change_nothing() -> None:
    plain = found_in(normal(256, 8))
    wide = np.zeros((256, 256))
    wide[:, 1::32] = normal(256, 8)  # which an even sample of 2048 elements would not see
    wide[:, 0] = 1e-6
    found = found_in(wide)
    assert found.deviation == pytest.approx(plain.deviation, rel=1e-6)
    assert found.count == pytest.approx(plain.count, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 2.0**-10, 1e30])
def test_scales_change_nothing(scale: float) -> None:
    known = error_feedback(np.diag(np.linspace(1, 9, 40))[None, None])
    values = normal(30, 40) * np.linspace(0, 2, 40)
    plain, found = found_in(values, known), found_in(values * scale, known)
    assert found.deviation == pytest.approx(plain.deviation * scale)
    assert found.count == pytest.approx(plain.count)
    assert found.felt == pytest.approx(plain.felt, rel=1e-5)
    assert plain.felt > 1.1  # the columns that are felt more have the larger elements


@pytest.mark.parametrize("form", ["float16", "float32", "float64"])
def test_extremes(form: Any) -> None:
    assert found_in(np.zeros((3, 4), form)) is None
    assert found_in(np.zeros((0, 4), form)) is None
    least = np.finfo(form).smallest_subnormal
    found = found_in(np.full((3, 4), least))
    assert found is None or found.count == 12
    most = found_in(np.full((3, 4), np.finfo(form).max))
    assert most.count == 12
