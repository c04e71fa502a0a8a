"""The benchmark that compares the libraries' algorithms with ours."""

from __future__ import annotations

from conformance.decomposition_libraries import MODELS, rows


def test_ours_are_no_worse_than_the_libraries() -> None:
    figures = {(row["algorithm"], row["by"]): row for row in rows(MODELS[:1])}
    for (algorithm, _), row in figures.items():
        ours = figures[algorithm, "ours, stable" if algorithm == "CP" else "ours"]
        assert ours["error"] <= row["error"] * (1 + 1e-4)
        if algorithm == "CP":
            assert ours["sensitivity"] <= row["sensitivity"]
    assert len({algorithm for algorithm, _ in figures}) == 3
