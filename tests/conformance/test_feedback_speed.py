"""The study of the search with feedback."""

from __future__ import annotations

import pytest

from conformance.studies import feedback_speed
from nnr_codec._core import allow_fast_paths


def test_both_paths_find_the_same() -> None:
    if not allow_fast_paths(True):
        pytest.skip("this processor has only the plain paths")
    for dq in (True, False):
        row = feedback_speed.measure(4, 50, dq, 1)
        assert row["times"] == pytest.approx(row["plain"] / row["fast"])
    assert allow_fast_paths(True)
