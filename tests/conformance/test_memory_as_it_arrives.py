"""The study of memory while a stream arrives: a model that would not fit into what is allowed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from conformance import memory_as_it_arrives

MEGABYTE = 1_000_000


@pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra torch")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_neither_the_model_nor_a_copy_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less than is allowed of large models, so that a small one tells.
    monkeypatch.setattr(memory_as_it_arrives, "BESIDES", 15 * MEGABYTE)
    figures = memory_as_it_arrives.measure(tmp_path, 24 * MEGABYTE, 4 * MEGABYTE)
    bounds = [run["bound_bytes"] for run in figures["runs"]]
    assert bounds[0] == bounds[1] < figures["model_bytes"]
    assert bounds[2] == bounds[3] < 2 * figures["model_bytes"]
    for run in figures["runs"]:
        assert run["within"], run
