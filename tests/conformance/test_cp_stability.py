"""The benchmark that compares CP by plain ALS with ours."""

from __future__ import annotations

import numpy as np
import pytest

from conformance.cp_stability import COLUMNS, KERNELS, METHODS, MODEL, measured, rows
from conformance.studies.figures import as_table


def test_ours_bears_quantization_where_plain_als_does_not() -> None:
    found = {row["method"]: row for row in rows(MODEL, KERNELS[:1], [0.1])}
    assert tuple(found) == METHODS
    ours = found.pop("ours")
    assert ours["error in 5 bits"] < 1.02 * ours["error"]
    assert ours["largest term"] < 0.3
    for plain in found.values():
        assert ours["error"] < 1.02 * plain["error"]
        assert ours["error in 5 bits"] < plain["error in 5 bits"]
        assert ours["sensitivity"] < 0.2 * plain["sensitivity"]
    line = as_table(COLUMNS, [ours]).splitlines()[-1]
    assert line.split()[:2] == [KERNELS[0], str(ours["rank"])]


def test_figures_of_exact_terms() -> None:
    rng = np.random.default_rng(0)
    factors = [rng.normal(size=(size, 1)) for size in (5, 4, 3)]
    kernel = np.einsum("ar,br,cr->abc", *factors)
    figures = measured(kernel, [factors[0] * 10, factors[1] / 10, factors[2]])
    assert figures["error"] < 1e-12
    assert figures["largest term"] == pytest.approx(1)
    assert 0 < figures["error in 5 bits"] < 0.01
