"""Cells of methods that decompose: what running on factors costs, and fitting to data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("zstandard")
pytest.importorskip("constriction")
pytest.importorskip("torch")

from nnr_codec import EncodeOptions
from nnr_codec.checkpoints import save_checkpoint
from nnr_codec.experiments.evaluation import calibration_of
from nnr_codec.experiments.report.tables import csv_text, rows
from nnr_codec.experiments.runner import run_plan

SUBJECT = '''
"""Two convolutions and a classifier, of samples whose last channels are hardly there."""
from collections import OrderedDict
from pathlib import Path
import numpy as np
import torch
from torch import nn
from nnr_codec.experiments.subject import Subject

HERE = Path(__file__).parent
SCALE = np.array([4.0, 2.0, 1.0, 0.5, 0.001, 0.001, 0.001, 0.001], np.float32)

def network():
    return nn.Sequential(OrderedDict(
        first=nn.Conv2d(8, 8, 1, bias=False), norm=nn.BatchNorm2d(8),
        middle=nn.Conv2d(8, 6, 3, stride=2, padding=1), flatten=nn.Flatten(),
        last=nn.Linear(96, 4)))

def samples(seed):
    rng = np.random.default_rng(seed)
    maps = rng.normal(0, 1, (60, 8, 8, 8)).astype(np.float32) * SCALE[:, None, None]
    yield torch.from_numpy(maps), rng.integers(0, 4, 60)

def skewed(data):
    return Subject("skewed", network, HERE / "skewed.safetensors",
                   lambda: samples(1), calibration=lambda: samples(2))

def blind(data):
    return Subject("blind", network, HERE / "skewed.safetensors", lambda: samples(1))
'''

PLAN = """
resamples = 10

[[subject]]
source = "subjects.py:SUBJECT"

[[method]]
codec = "nnr"
"""


def save(folder: Path, subject: str = "skewed", seed: int = 0, **options: Any) -> Path:
    """Write a plan of one cell, its subject and a checkpoint; return the plan's path."""
    rng = np.random.default_rng(seed)
    shapes = {"first.weight": (8, 8, 1, 1), "middle.weight": (6, 8, 3, 3), "last.weight": (4, 96)}
    vectors = {f"norm.{name}": np.ones(8) for name in ("weight", "running_var")}
    vectors |= {f"norm.{name}": np.zeros(8) for name in ("bias", "running_mean")}
    vectors |= {"middle.bias": np.zeros(6), "last.bias": np.zeros(4)}
    model = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()} | vectors
    # Where the weights are large, the inputs are not.
    model["first.weight"] = np.diag([1.0] * 4 + [10.0] * 4).reshape(8, 8, 1, 1)
    arrays = {name: values.astype(np.float32) for name, values in model.items()}
    save_checkpoint(folder / "skewed.safetensors", arrays, overwrite=True)
    (folder / "subjects.py").write_text(SUBJECT)
    lines = [f"{key} = {value}" for key, value in options.items()]
    text = "\n".join([PLAN.replace("SUBJECT", subject), "[method.options]", *lines])
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def cell(plan: Path, out: Path | None = None) -> dict[str, Any]:
    """Return the row of the one cell of a plan."""
    found = run_plan(plan, out)
    assert not found.failures, found.failures
    _, row = rows(found)
    return row


DENSE = {"first": 64, "norm": 16, "middle": 6 * 72 + 6, "last": 4 * 96 + 4}
WORK = {"first": 64 * 64, "middle": 16 * 6 * 72, "last": 4 * 96}


@pytest.mark.parametrize(
    ("overrides", "parameters", "macs"),
    [
        # LR of rank 2: 8x3x3 to 2 channels at 16 places, then 1x1 to 6
        (
            '{ "middle.weight" = { decompose = "lr", rank = 2 } }',
            {"middle": 2 * (6 + 72) + 6},
            {"middle": 16 * 2 * (72 + 6)},
        ),
        # CP of rank 3: 1x1 at 64 places, 3x1 at 4x8, 1x3 at 4x4, 1x1
        (
            '{ "middle.weight" = { decompose = "cp", rank = 3 } }',
            {"middle": 3 * (6 + 8 + 3 + 3) + 6},
            {"middle": 3 * (64 * 8 + 32 * 3 + 16 * 3 + 16 * 6)},
        ),
        (
            '{ "last.weight" = { decompose = "lr", rank = 1 } }',
            {"last": 100 + 4},
            {"last": 100},
        ),
        ("{}", {}, {}),
    ],
)
@pytest.mark.parametrize("carriage", ["dc", "factors"])
def test_what_running_on_factors_costs(
    carriage: str, overrides: str, parameters: dict[str, int], macs: dict[str, int], tmp_path: Path
) -> None:
    plan = save(tmp_path, overrides=overrides, decomposition=f'{{ carriage = "{carriage}" }}')
    found = run_plan(plan)
    whole, row = rows(found)
    assert (whole["parameters"], whole["macs"]) == (sum(DENSE.values()), sum(WORK.values()))
    assert row["parameters"] == sum((DENSE | parameters).values())
    assert row["macs"] == sum((WORK | macs).values())


def test_errors_of_the_weights(tmp_path: Path) -> None:
    """In the rows and in the CSV of cells; the uncompressed network has none."""
    overrides = '{ "middle.weight" = { decompose = "lr", rank = 2 } }'
    found = run_plan(save(tmp_path, overrides=overrides))
    whole, row = rows(found)
    assert not {"weight_error", "kernel_error", "decomposed_error"} & whole.keys()
    # The other weights have the error of fine steps alone.
    assert 0 < row["weight_error"] < row["kernel_error"] < row["decomposed_error"] < 1
    header, _, values = (line.split(",") for line in csv_text(found).splitlines())
    for name in ("weight_error", "kernel_error", "decomposed_error"):
        assert float(values[header.index(name)]) == row[name]
    row = cell(save(tmp_path))
    assert 0 < row["weight_error"] < 1e-4
    assert "decomposed_error" not in row


def test_fitting_to_data(tmp_path: Path) -> None:
    overrides = '{ "first.weight" = { decompose = "lr", rank = 3 } }'
    alone = cell(save(tmp_path, overrides=overrides))
    fitted = cell(save(tmp_path, overrides=overrides, calibration_stride=2))
    assert fitted["parameters"] == alone["parameters"]
    assert fitted["divergence"] < 0.7 * alone["divergence"]


def test_moments_are_of_the_samples_to_calibrate(tmp_path: Path) -> None:
    save(tmp_path)
    source = f"{tmp_path / 'subjects.py'}:skewed"
    found = calibration_of(source, None, 2)
    assert found.calibration.samples == 30
    assert calibration_of(source, None, 2) is found
    save(tmp_path, seed=1)
    assert calibration_of(source, None, 2) is not found


def test_corrections_of_cells_side_by_side_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnr_codec.calibration import divergence

    save(tmp_path)
    known = calibration_of(f"{tmp_path / 'subjects.py'}:skewed", None, 1)
    own = {name: values.numpy() for name, values in known.module.state_dict().items()}
    first, second = (known.corrections(EncodeOptions()) for _ in range(2))
    assert first is not None
    assert second is not None
    assert second.divergence(own) == 0
    seen: list[float] = []
    output_of = divergence.output_of

    def meanwhile(*arguments: Any) -> Any:
        if not seen:  # the first cell's network has other tensors now
            seen.append(math.nan)
            seen[0] = second.divergence(own)
        return output_of(*arguments)

    other = {name: values + values.any() for name, values in own.items()}
    assert first.divergence(own) == 0
    monkeypatch.setattr(divergence, "output_of", meanwhile)
    assert first.divergence(other) > 0
    assert seen == [0]


def test_without_samples_to_calibrate(tmp_path: Path) -> None:
    plan = save(tmp_path, "blind", decomposition='{ method = "lr", rank = 3 }')
    assert cell(plan)["bytes"] > 0
    plan.write_text(plan.read_text() + "\ncalibration_stride = 1")
    ((_, failure),) = run_plan(plan).failures
    assert failure.reason == "calibration_stride: blind has no calibration samples"


def test_changed_samples_to_calibrate_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnr_codec.experiments import cells

    plan = save(tmp_path, decomposition='{ method = "lr", rank = 3 }', calibration_stride=1)
    before = run_plan(plan).facts["skewed"]
    measured: list[str] = []
    measure = cells.measure

    def watched(cell: Any, *arguments: Any) -> Any:
        measured.append(cell.name)
        return measure(cell, *arguments)

    monkeypatch.setattr("nnr_codec.experiments.runner.measure", watched)
    out = tmp_path / "out"
    cell(plan, out)
    cell(plan, out)
    assert measured == ["skewed/uncompressed", "skewed/nnr"]
    subjects = tmp_path / "subjects.py"
    subjects.write_text(subjects.read_text().replace("samples(2)", "samples(3)"))
    after = run_plan(plan, out).facts["skewed"]
    assert measured[2:] == ["skewed/uncompressed", "skewed/nnr"]
    assert before.samples == after.samples
    assert before.calibration != after.calibration
