"""Streams of cells, handed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experiments_support import PLAN, save_plan

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("zstandard")
pytest.importorskip("constriction")

from nnr_codec import InvalidOptions, NnrError, decode
from nnr_codec.experiments.runner import run_plan
from nnr_codec.experiments.streams import hand_over

COPY = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
EXTERNAL = f"""
[[method]]
name = "copy"
codec = "external"
options = {{ encode = ["{{python}}", "-c", "{COPY}", "{{model}}", "{{stream}}"], \
decode = ["{{python}}", "-c", "{COPY}", "{{stream}}", "{{decoded}}"], format = ".safetensors" }}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A small plan whose cells have been measured into the folder `out` beside it."""
    path = save_plan(tmp_path, PLAN + EXTERNAL)
    run_plan(path, tmp_path / "out")
    return path


def handed(plan: Path, name: str, **options: Any) -> bytes:
    target = plan.parent / "stream"
    hand_over(plan, plan.parent / "out", name, target, overwrite=True, **options)
    return target.read_bytes()


def test_the_bytes_that_were_measured(plan: Path) -> None:
    report = plan.parent / "out" / "report.html"
    before = report.stat().st_mtime_ns
    made = hand_over(plan, plan.parent / "out", "linear/uniform/qp=-16", plan.parent / "fine.nnr")
    stream = (plan.parent / "fine.nnr").read_bytes()
    assert len(stream) == made.measured.record["bytes"]
    assert decode(stream).keys() == {"weight", "bias"}
    assert len(handed(plan, "*/qp=-8")) < len(stream)
    assert report.stat().st_mtime_ns == before


def test_those_of_other_codecs(plan: Path) -> None:
    model = (plan.parent / "linear.safetensors").stat().st_size
    assert len(handed(plan, "linear/copy")) == model
    assert handed(plan, "linear/integers/bits=8") != handed(plan, "linear/integers/bits=4")


def test_streams_that_are_gone_or_damaged_are_made_anew(plan: Path) -> None:
    expected = handed(plan, "*/qp=-16")
    (kept,) = (plan.parent / "out" / "cells").glob("*qp=-16*.stream")
    kept.unlink()
    done: list[str] = []
    names = {"progress": lambda name, measured: done.append(name)}
    run_plan(plan, plan.parent / "out")
    assert not kept.exists()  # figures alone need none
    assert handed(plan, "*/qp=-16", **names) == expected
    kept.write_bytes(expected[:-1])
    assert handed(plan, "*/qp=-16") == expected
    assert done == ["linear/uncompressed", "linear/uniform/qp=-16"]


def test_refusals(plan: Path) -> None:
    out, target = plan.parent / "out", plan.parent / "stream"
    for name in ("linear/uniform/qp=-15", "linear/uncompressed", "*/qp=*", ""):
        with pytest.raises(InvalidOptions, match="linear/uniform/qp=-") as refused:
            hand_over(plan, out, name, target)
        assert refused.value.option == "stream"
    target.write_text("kept")
    with pytest.raises(InvalidOptions, match="exists already"):
        hand_over(plan, out, "*/qp=-8", target)
    save_plan(plan.parent, PLAN + EXTERNAL.replace("{stream}", "{stream}s", 1))
    with pytest.raises(NnrError, match=r"linear/copy: .* did not write {stream}"):
        hand_over(plan, out, "linear/copy", target, overwrite=True)
    assert target.read_text() == "kept"
