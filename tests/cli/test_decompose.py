"""nnr-encode --decompose: options, what stays dense, users' modules, and what comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import DIGITS, MODELS, Run, load, random_weights, save

SUBJECTS = """
import sys
sys.path.insert(0, {folder!r})
import torch
import digits_networks

def module():
    return digits_networks.PlainNetwork()

def with_inputs():
    return module(), torch.zeros(1, 1, 8, 8)

def calibration():
    return module(), digits_networks.batches("digits_calibration.npz")

def wrong_batches():
    return module(), [torch.zeros(2, 5, 8, 8)]

def wrong_module():
    return "a network"

def three_things():
    return module(), 1, 2

def failing():
    raise RuntimeError("no such data")
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "networks.py"
    path.write_text(SUBJECTS.format(folder=str(MODELS.with_name("subjects"))))
    return path


def factored(run: Run, stream: Path) -> dict[str, dict[str, Any]]:
    """Return what nnr-info says of the weights in factors."""
    info = json.loads(run("nnr-info", stream, "--json").out)
    return {weight["name"]: weight for weight in info["factorizations"]}


@pytest.mark.parametrize("carriage", ["dc", "factors"])
@pytest.mark.parametrize(
    "asked",
    [
        ["lr", "--rank", "0.5"],
        ["cp", "--rank", "8"],
        ["tucker2", "--rank", "vbmf"],
        ["ht2", "--energy", "0.5"],
        ["ce1", "--compression-ratio", "2.5"],
        ["auto", "--compression-ratio", "2.5"],
        ["auto"],
    ],
)
def test_dense_weights_come_back(run: Run, tmp_path: Path, asked: list[str], carriage: str) -> None:
    stream, output = tmp_path / "d.nnr", tmp_path / "d.npz"
    done = run("nnr-encode", DIGITS, "-o", stream, "--decompose", *asked, "--carriage", carriage)
    assert done.code == 0, done.err
    assert ("stays dense: 'conv1.weight'" in done.err) is (asked[0] != "ht2")
    assert run("nnr-decode", stream, "-o", output).code == 0
    before, after = load(DIGITS), load(output)
    assert {n: (a.dtype, a.shape) for n, a in after.items()} == {
        n: (a.dtype, a.shape) for n, a in before.items()
    }
    names = factored(run, stream)
    if asked != ["auto"]:
        assert {"conv2.weight", "conv3.weight"} & set(names)
    for name, array in before.items():
        if name not in names:
            assert np.abs(after[name] - array).max() < 0.01 * np.abs(array).max() + 0.01, name
        else:
            assert 0 < np.sum((after[name] - array) ** 2) < np.sum(array**2), name


def test_joint(run: Run, tmp_path: Path) -> None:
    arrays = {f"stage.{i}.weight": random_weights(16, 16, 3, 3, seed=i) for i in range(4)}
    path = save(tmp_path / "m.npz", {"first.weight": random_weights(8, 8), **arrays})
    asked = ["--decompose", "joint", "--rank", "0.5", "--joint-scheme", "binary"]
    assert run("nnr-encode", path, "-o", tmp_path / "m.nnr", *asked).code == 0
    found = factored(run, tmp_path / "m.nnr")
    assert {name: weight["form"] for name, weight in found.items()} == dict.fromkeys(
        arrays, "joint_binary"
    )


def test_set(run: Run, tmp_path: Path) -> None:
    stream = tmp_path / "d.nnr"
    asked = ["--decompose", "lr", "--rank", "4", "--set", "conv2*=decompose:cp,rank:7"]
    asked += ["--set", "fc.*=decompose:none", "--set", "conv1.weight=decompose:lr,rank:2"]
    done = run("nnr-encode", DIGITS, "-o", stream, *asked)
    assert done.code == 0
    assert not done.err
    found = factored(run, stream)
    assert {name: (w["form"], w["ranks"]) for name, w in found.items()} == {
        "conv1.weight": ("lr", [2]),
        "conv2.weight": ("cp", [7]),
        "conv3.weight": ("lr", [4]),
    }


def test_what_stays_dense_is_listed_by_reason(run: Run, tmp_path: Path) -> None:
    asked = ["--decompose", "lr", "--rank", "30", "--exclude", "conv2*", "--dry-run"]
    done = run("nnr-encode", DIGITS, *asked)
    assert done.code == 0
    assert done.err.splitlines() == [
        "nnr-encode: warning: stays dense: 'conv1.weight': is of the first layer",
        "nnr-encode: warning: stays dense: 'conv2.weight': is not quantized",
        "nnr-encode: warning: stays dense: 'fc.weight': lr: ranks [30] not from 1 to [10]",
    ]
    assert not run("nnr-encode", DIGITS, *asked, "-q").err


def test_what_stays_dense_is_listed_in_the_plural(run: Run, tmp_path: Path) -> None:
    for count, listed in (
        (6, "'0', '1', '2', '3', '4', '5'"),
        (8, "'0', '1', '2', '3', '4' and 3 more"),
    ):
        arrays = {f"{i}": random_weights(8 + i, 6, seed=i) for i in range(count)}
        path = save(tmp_path / f"{count}.npz", arrays)
        done = run("nnr-encode", path, "--dry-run", "--decompose", "joint", "--rank", "2")
        reason = "are in no group of equal layers that share a factor"
        assert done.err == f"nnr-encode: warning: stay dense: {listed}: {reason}\n"
        asked = ["--decompose", "lr", "--rank", "2", "--exclude", "*"]
        done = run("nnr-encode", path, "--dry-run", *asked)
        assert done.err == f"nnr-encode: warning: stay dense: {listed}: are not quantized\n"


def test_summary(run: Run, tmp_path: Path) -> None:
    """The errors are those of the dense weights, and how much of them the decomposition makes."""
    stream, output = tmp_path / "d.nnr", tmp_path / "d.npz"
    asked = [DIGITS, "-o", stream, "-f", "--decompose", "lr", "--rank", "4", "--qp", "-20"]
    report = json.loads(run("nnr-encode", *asked, "--json").out)
    lines = run("nnr-encode", *asked, "-v").out.splitlines()
    assert run("nnr-decode", stream, "-o", output).code == 0
    before, after = load(DIGITS), load(output)
    info = json.loads(run("nnr-info", stream, "--json").out)
    assert report["parameters"] == info["parameters"] < report["elements"] == info["elements"]
    assert 0 < report["decomposition_nmse"] < report["nmse"]
    assert (
        f"{len(before)} tensors (3 as factors), {report['elements']} weights "
        f"({report['parameters']} parameters), " in lines[-1]
    )
    assert (
        f"NMSE {report['nmse']:.3g} ({report['decomposition_nmse']:.3g} by decomposition alone) "
        f"({report['worst_tensor']}: {report['worst_nmse']:.3g}), " in lines[-1]
    )
    rows = {cells[0]: cells for cells in map(str.split, lines[:-1])}
    for name in factored(run, stream):
        error = np.square(after[name].astype(float) - before[name]).sum()
        nmse = error / np.square(before[name].astype(float)).sum()
        assert float(rows[name][-1]) == pytest.approx(nmse, rel=0.01)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (["--decompose", "svd", "--rank", "2"], "--decompose: 'svd' is not one of"),
        (["--decompose", "lr"], "needs one of rank, energy, compression-ratio"),
        (["--decompose", "lr", "--rank", "2", "--energy", "0.5"], "not allowed with"),
        (["--decompose", "lr", "--rank", "much"], "--rank"),
        (["--decompose", "lr", "--rank", "0"], "rank: 0"),
        (["--decompose", "lr", "--compression-ratio", "900"], "--compression-ratio: 900"),
        (
            ["--decompose", "auto", "--objective", "macs", "--compression-ratio", "2"],
            "--compression-ratio: needs the objective 'size'",
        ),
        (
            ["--decompose", "joint", "--compression-ratio", "2"],
            "--compression-ratio: 2.0: there is no group of repeated layers",
        ),
        (
            ["--decompose", "lr", "--compression-ratio", "2", "--lossless"],
            "--compression-ratio: 2.0: nothing is decomposed",
        ),
        (["--decompose", "auto", "--objective", "macs"], "--objective: 'macs' needs a module"),
        (["--decompose", "auto", "--objective", "latency"], "(--module)"),
        (
            ["--decompose", "lr", "--rank", "all"],
            "--rank: 'all' is not a rank (a whole number above 0)",
        ),
        (
            ["--set", "*=decompose:lr,rank:all"],
            "rank: 'all' in '*=decompose:lr,rank:all' is not a rank",
        ),
        (["--decompose", "lr", "--compression-ratio", "1"], "1.0 is not a finite number above 1"),
        (["--rank", "2"], "--rank: has no effect without --decompose"),
        (["--module", "x.py:f"], "--module: has no effect without --decompose"),
        (["--save-calibration", "x.npz"], "--save-calibration: has no effect without --calibrate"),
        (["--low-memory"], "--low-memory: has no effect without --calibrate or --calibration"),
        (
            ["--calibrate", "x.py:f", "--calibration", "x.npz"],
            "--calibration: stands in place of --calibrate",
        ),
        (["--set", "fc*=decompose:lr"], "needs one of"),
        (["--set", "fc.weight=decompose:lr,rank:11"], "'fc.weight': lr: ranks [11]"),
        (["--set", "fc.bias=decompose:lr,rank:1"], "--set fc.bias: decompose: is no weight"),
        (
            ["--decompose", "lr", "--rank", "2", "--set", "a=rank:few"],
            "rank: 'few' in 'a=rank:few' is not a rank",
        ),
        (["--decompose", "lr", "--rank", "2", "--module", "m.py:f"], "there is no file"),
        (["--decompose", "lr", "--rank", "2", "--module", "m.py"], "not of the form"),
    ],
)
def test_wrong_usage(run: Run, asked: list[str], reason: str) -> None:
    done = run("nnr-encode", DIGITS, "--dry-run", *asked)
    assert done.code == 2
    assert reason in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("option", "function", "reason"),
    [
        ("module", "missing", "has no function 'missing'"),
        ("module", "failing", "RuntimeError: no such data"),
        ("module", "wrong_module", "returns str, not a torch module"),
        ("module", "three_things", "py:three_things: returns tuple, not a torch module"),
        ("calibrate", "module", "returns no batches"),
        ("calibrate", "wrong_batches", "py:wrong_batches: RuntimeError"),
    ],
)
def test_wrong_functions(
    run: Run, user_file: Path, option: str, function: str, reason: str
) -> None:
    pytest.importorskip("torch")
    asked = ["--decompose", "lr", "--rank", "4", f"--{option}", f"{user_file}:{function}"]
    done = run("nnr-encode", DIGITS, "--dry-run", *asked)
    assert done.code == 2
    assert reason in done.err


def test_calibration_lowers_the_error_of_the_output(
    run: Run, tmp_path: Path, user_file: Path
) -> None:
    pytest.importorskip("torch")
    from conformance.models.digits import load_test_set, logits

    images, _ = load_test_set()
    expected = logits(load(DIGITS), images)
    errors = []
    for index, more in enumerate(([], ["--calibrate", f"{user_file}:calibration"])):
        stream, output = tmp_path / f"{index}.nnr", tmp_path / f"{index}.npz"
        asked = ["--decompose", "lr", "--rank", "0.4", *more]
        assert run("nnr-encode", DIGITS, "-o", stream, *asked).code == 0
        assert run("nnr-decode", stream, "-o", output).code == 0
        errors.append(np.mean((logits(load(output), images) - expected) ** 2))
    assert errors[1] < 0.8 * errors[0]


def test_low_memory(run: Run, tmp_path: Path, user_file: Path) -> None:
    """The stream is the same; also of a generator, which comes once."""
    pytest.importorskip("torch")
    asked = ["nnr-encode", DIGITS, "--calibrate"]
    kept = ["--save-calibration", tmp_path / "known.npz"]
    # A saved calibration has no samples to correct by.
    for name, more in (("high", kept), ("low", ["--low-memory"])):
        more = [*more, "--no-correct"]
        done = run(*asked, f"{user_file}:calibration", "-o", tmp_path / f"{name}.nnr", "-q", *more)
        assert done.code == 0, done.err
    loaded = ["--calibration", tmp_path / "known.npz", "--low-memory"]
    assert run("nnr-encode", DIGITS, "-o", tmp_path / "loaded.nnr", "-q", *loaded).code == 0
    streams = {(tmp_path / f"{name}.nnr").read_bytes() for name in ("high", "low", "loaded")}
    assert len(streams) == 1


def test_what_a_calibration_tells_of_tensors(run: Run, user_file: Path) -> None:
    pytest.importorskip("torch")
    asked = ["--calibrate", f"{user_file}:calibration", "--dry-run", "--set", "fc.weight=qp:-30"]
    done = run("nnr-encode", DIGITS, "-v", *asked)
    assert done.code == 0, done.err
    header, *rows = (line.split() for line in done.out.splitlines())
    assert header[-4:] == ["loss", "qp", "by", "feedback"]
    by_name = {row[0]: row for row in rows if row}
    assert by_name["conv2.weight"][-2:] == ["sensitivity", "result"]
    assert by_name["fc.weight"][-2:] == ["given", "result"]
    assert by_name["bn1.weight"][-2:] == ["sensitivity", "-"]


def test_layers_that_the_calibration_does_not_run_are_listed(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    weights = {
        f"{name}.weight": random_weights(32, 32, seed=0) for name in ("first", "run", "idle")
    }
    (tmp_path / "idle.py").write_text("""
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.run, self.idle = (torch.nn.Linear(32, 32, bias=False) for _ in range(3))

    def forward(self, values):
        return self.run(self.first(values))

def calibration():
    return Network(), [torch.ones(4, 32)]
""")
    asked = [
        "--decompose",
        "lr",
        "--rank",
        "4",
        "--calibrate",
        f"{tmp_path / 'idle.py'}:calibration",
    ]
    done = run("nnr-encode", save(tmp_path / "m.npz", weights), "--dry-run", *asked)
    assert done.code == 0, done.err
    assert "calibration of 'idle.weight': did not run: the error of the weight counts" in done.err
    assert run("nnr-encode", tmp_path / "m.npz", "--dry-run", "-q", *asked).err == ""


def test_fewer_operations_with_a_module(run: Run, tmp_path: Path, user_file: Path) -> None:
    pytest.importorskip("torch")
    stream = tmp_path / "d.nnr"
    asked = ["--decompose", "auto", "--objective", "macs", "--energy", "0.6"]
    done = run("nnr-encode", DIGITS, "-o", stream, *asked, "--module", f"{user_file}:with_inputs")
    assert done.code == 0, done.err
    assert {"conv2.weight", "conv3.weight"} <= set(factored(run, stream))
    assert run("nnr-encode", DIGITS, "--dry-run", *asked, "--module",
               f"{user_file}:module").code == 2  # without inputs  # fmt: skip


def test_a_model_of_factors_keeps_them(run: Run, tmp_path: Path) -> None:
    first, factors, second = tmp_path / "1.nnr", tmp_path / "1.npz", tmp_path / "2.nnr"
    asked = ["--set", "conv2*=decompose:cp,rank:7"]
    assert run("nnr-encode", DIGITS, "-o", first, *asked).code == 0
    assert run("nnr-decode", first, "-o", factors, "--layers", "factorized").code == 0
    done = run("nnr-encode", factors, "-o", second, "--decompose", "lr", "--rank", "4")
    assert done.code == 0, done.err
    found = factored(run, second)
    assert {n: w["form"] for n, w in found.items()} == {
        "conv2.weight": "cp", "conv3.weight": "lr", "fc.weight": "lr",
    }  # fmt: skip


def test_threads_change_nothing(run: Run, tmp_path: Path) -> None:
    made = []
    for threads in (1, 3):
        stream = tmp_path / f"{threads}.nnr"
        asked = ["--decompose", "tucker2", "--compression-ratio", "2", "--threads", threads]
        assert run("nnr-encode", DIGITS, "-o", stream, "-q", *asked).code == 0
        made.append(stream.read_bytes())
    assert made[0] == made[1]
