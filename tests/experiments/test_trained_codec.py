"""Networks that plans train: what a function gets, what becomes of its bitstream and its state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments_support import PLAN, save_plan

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("zstandard")
pytest.importorskip("constriction")

from nnr_codec import InvalidOptions, decode
from nnr_codec.experiments.cells import Failure, Measured
from nnr_codec.experiments.methods.trained import TrainedCodec
from nnr_codec.experiments.runner import run_plan
from nnr_codec.experiments.streams import hand_over

TRAININGS = '''
from pathlib import Path
import torch
import nnr_codec

LOG = Path(__file__).with_name("log")

def doubled(run, *, qp, factor=2.0, breaks=False):
    """Weights times the factor and the seed plus 1, in two steps of which the state keeps one."""
    done = run.state is not None and run.state.exists()
    LOG.write_text(LOG.read_text() + ("b" if done else "a") if LOG.exists() else "a")
    if not done and run.state is not None:
        run.state.write_text("first")
        if breaks:
            raise RuntimeError("in the middle")
    with torch.no_grad():
        run.module.weight.mul_(factor * (run.seed + 1))
    return nnr_codec.encode(run.module, options=nnr_codec.EncodeOptions(qp=qp)).data

def nothing(run):
    return None
'''

METHOD = """
[[method]]
name = "doubled"
codec = "trained"
options = { train = "trainings.py:doubled", qp = -30 }
points = { factor = [2.0, 3.0] }
grid = { seed = [0, 1] }
"""


def plan_of(folder: Path, method: str = METHOD) -> Path:
    (folder / "trainings.py").write_text(TRAININGS)
    return save_plan(folder, PLAN + method)


def test_what_a_function_returns_is_judged(tmp_path: Path) -> None:
    path = plan_of(tmp_path)
    results = run_plan(path, tmp_path / "out")
    cells = {cell.name: outcome for cell, outcome in results.cells if cell.method == "doubled"}
    assert list(cells) == [
        f"linear/doubled/factor={factor}, seed={seed}"
        for factor in ("2.0", "3.0")
        for seed in (0, 1)
    ]
    hand_over(path, tmp_path / "out", "linear/doubled/factor=3.0, seed=1", tmp_path / "six.nnr")
    hand_over(path, tmp_path / "out", "linear/doubled/factor=3.0, seed=0", tmp_path / "three.nnr")
    six, three = (decode((tmp_path / f"{name}.nnr").read_bytes()) for name in ("six", "three"))
    assert six["weight"] == pytest.approx(2 * three["weight"], abs=0.02)
    for outcome in cells.values():
        assert isinstance(outcome, Measured)
        assert outcome.record["bytes"] > 0
        assert outcome.record["breakdown"]["headers"] > 0
    assert not list((tmp_path / "out" / "cells").glob("*.state"))
    assert (tmp_path / "log").read_text() == "aaaa"
    run_plan(path, tmp_path / "out")
    assert (tmp_path / "log").read_text() == "aaaa"  # from the cache


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    path = plan_of(tmp_path, METHOD.replace("qp = -30", "qp = -30, breaks = true"))
    only = "linear/doubled/factor=2.0, seed=0"
    ((_, failed),) = run_plan(path, tmp_path / "out", only=only).cells
    assert isinstance(failed, Failure)
    assert "in the middle" in failed.reason
    ((_, outcome),) = run_plan(path, tmp_path / "out", only=only).cells
    assert isinstance(outcome, Measured)
    assert (tmp_path / "log").read_text() == "ab"


def test_what_decides_a_cell(tmp_path: Path) -> None:
    """Another file of trainings is another cell."""
    path = plan_of(tmp_path)
    run_plan(path, tmp_path / "out", only="*/factor=2.0, seed=0")
    (tmp_path / "trainings.py").write_text(TRAININGS + "\n# changed\n")
    run_plan(path, tmp_path / "out", only="*/factor=2.0, seed=0")
    assert (tmp_path / "log").read_text() == "aa"


def test_functions_that_fail(tmp_path: Path) -> None:
    method = (
        '[[method]]\nname = "bad"\ncodec = "trained"\noptions = { train = "trainings.py:%s" }\n'
    )
    for function, reason in (
        ("nothing", "returns a value of type NoneType, not bytes"),
        ("absent", "has no function 'absent'"),
        ("doubled", "missing 1 required keyword-only argument: 'qp'"),
    ):
        path = plan_of(tmp_path, method % function)
        ((_, outcome),) = run_plan(path, tmp_path / "out", only="*/bad").cells
        assert isinstance(outcome, Failure)
        assert reason in outcome.reason


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "train"),
        ({"train": "absent.py:doubled"}, "train"),
        ({"train": "trainings.py:doubled", "seed": -1}, "seed"),
        ({"train": "trainings.py:doubled", "seed": "one"}, "seed"),
    ],
)
def test_options_that_are_none(options: dict[str, object], named: str, tmp_path: Path) -> None:
    plan_of(tmp_path)
    with pytest.raises(InvalidOptions, match=named):
        TrainedCodec.from_options(options, tmp_path)


def test_tensors_alone_cannot_be_trained(tmp_path: Path) -> None:
    plan_of(tmp_path)
    codec = TrainedCodec.from_options({"train": "trainings.py:doubled"}, tmp_path)
    assert json.loads(codec.values) == {}
    with pytest.raises(InvalidOptions, match="network"):
        codec.encode({})
