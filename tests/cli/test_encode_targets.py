"""nnr-encode's targets: what is measured, what is told, what a search leaves, and wrong usage."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_support import DIGITS, EVALUATOR, MODELS, Run

import nnr_codec
from conformance.models.digits import accuracy

USER_FILE = """
import sys
sys.path.insert(0, {folder!r})
import torch
import digits_networks

calls = 0

def module():
    return digits_networks.PlainNetwork()

def calibration():
    images = [images for images, _ in digits_networks.batches("digits_calibration.npz", 10)]
    return module(), images[:8]

def score(network):
    images, labels = next(digits_networks.batches("digits_test.npz"))
    return 100 * (network(images).argmax(1) == torch.from_numpy(labels).long()).double().mean()

def largest(arrays):
    return float(abs(arrays["first.weight"]).max())

def text(tensors):
    return "good"

def failing(tensors):
    raise RuntimeError("no data")

def interrupting(arrays):
    global calls
    calls += 1
    if calls == 3:
        raise KeyboardInterrupt
    return largest(arrays)

def resumed(arrays):
    return interrupting(arrays)
"""
DROP = ["--max-drop", "0.001"]


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "networks.py"
    path.write_text(USER_FILE.format(folder=str(MODELS.with_name("subjects"))))
    return path


def searched(run: Run, *arguments: Any) -> dict[str, Any]:
    """Return the JSON report of an encoding."""
    done = run("nnr-encode", *arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_bits(run: Run, model: Path) -> None:
    found = searched(run, model, "--dry-run", "--target-bits", "3.5")
    assert 3.3 < found["bits_per_weight"] <= 3.5
    assert found["search"]["target"] == "target_bits"
    assert found["search"]["kept"] == found["qp_offset"]


def test_error(run: Run, model: Path) -> None:
    found = searched(run, model, "--dry-run", "--max-nmse", "0.01")
    assert 0.005 < found["nmse"] <= 0.01
    losses = {row["qp_offset"]: row["loss"] for row in found["search"]["evaluations"]}
    assert losses[found["qp_offset"]] == pytest.approx(found["nmse"])
    assert losses[found["qp_offset"] + 1] > 0.01


def test_drop_of_arrays(run: Run, tmp_path: Path) -> None:
    """The evaluator of the digits network, which needs no torch."""
    output = tmp_path / "m.nnr"
    evaluate = f"{EVALUATOR}:accuracy"
    done = run("nnr-encode", DIGITS, "-o", output, "--max-drop", "0.5", "--evaluate", evaluate)
    assert done.code == 0
    whole, found = re.findall(r"drop 0\.\d+ \(([\d.]+) -> ([\d.]+)\), qp offset", done.out)[0]
    assert accuracy(nnr_codec.load_file(output)) == pytest.approx(float(found), abs=1e-3)
    assert float(whole) - float(found) <= 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["m.nnr"]


class TestWithTorch:
    @pytest.fixture(autouse=True)
    def _needs_torch(self) -> None:
        pytest.importorskip("torch")

    def test_drop_of_a_module(self, run: Run, user_file: Path) -> None:
        arguments = ["--max-drop", "1", "--evaluate", f"{user_file}:score"]
        module = f"{user_file}:module"
        found = searched(run, DIGITS, "--dry-run", *arguments, "--module", module)
        losses = {row["qp_offset"]: row["loss"] for row in found["search"]["evaluations"]}
        assert losses[found["qp_offset"]] <= 1 < losses[found["qp_offset"] + 1]
        assert found["search"]["reference"] > 99

    def test_divergence(self, run: Run, user_file: Path) -> None:
        arguments = ["--max-kl", "0.05", "--calibrate", f"{user_file}:calibration"]
        done = run("nnr-encode", DIGITS, "--dry-run", "-v", *arguments, "--qp", "-22")
        assert done.code == 0
        lines = done.out.splitlines()
        header = ["qp", "offset", "bytes", "bit/weight", "NMSE", "KL"]
        headers = [line.split() == header for line in lines]
        start = headers.index(True)
        rows = [line.split() for line in lines[start + 1 : lines.index("", start)]]
        divergence = float(re.findall(r", KL ([\d.e-]+),", lines[-1])[0])
        assert 0.01 < divergence <= 0.05
        assert divergence in [float(row[-1]) for row in rows]
        assert len(rows) <= 6


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--max-nmse 2", "--max-nmse: 2.0 is not a finite number above 0 and at most 1"),
            ("--max-kl 0.1", "--max-kl: needs --calibrate"),
            ("--max-kl 0.1 --calibration x.npz", "--max-kl: needs --calibrate"),
            ("--max-drop 1", "--max-drop: needs --evaluate"),
            ("--max-nmse 0.1 --evaluate x.py:f", "--evaluate: has no effect without --max-drop"),
            ("--report x.html", "--report: has no effect without a target: --target-size, "),
            ("--max-nmse 0.1 --report x.html", "--report: is not written with --dry-run"),
            ("--max-nmse 0.1 --target-bits 2", "--max-nmse: does not go with target-bits: leave"),
            ("--max-drop 1 --evaluate {file}:nothing", "--evaluate: .* has no function 'nothing'"),
            ("--max-drop 1 --evaluate {file}:text", "--evaluate: returns str, not one number"),
            (
                "--max-drop 1 --evaluate {file}:failing",
                "--evaluate: .*:failing: RuntimeError: no data .*--module names a module",
            ),
            ("--max-drop 1 --module x.py:f", "--max-drop: needs --evaluate"),
        ],
    )
    def test_messages(
        self, run: Run, model: Path, user_file: Path, arguments: str, message: str
    ) -> None:
        pytest.importorskip("torch")  # which the user's file imports
        words = arguments.format(file=user_file).split()
        done = run("nnr-encode", model, "--dry-run", *words)
        assert (done.code, done.out) == (2, "")
        assert re.match(f"nnr-encode: error: {message}", done.err), done.err
        assert len(done.err.splitlines()) == 1

    @pytest.mark.parametrize("target", ["--target-bits=0.01", "--max-nmse=1e-20"])
    def test_out_of_reach(self, run: Run, model: Path, tmp_path: Path, target: str) -> None:
        before = sorted(tmp_path.iterdir())
        done = run("nnr-encode", model, "-o", tmp_path / "m.nnr", target)
        assert (done.code, done.out) == (1, "")
        assert f"{target.split('=')[0]}: " in done.err
        assert "cannot be reached" in done.err
        assert sorted(tmp_path.iterdir()) == before


class TestInterruption:
    @pytest.fixture
    def arguments(self, model: Path, user_file: Path, tmp_path: Path) -> list[Any]:
        pytest.importorskip("torch")  # which the user's file imports
        evaluate = f"{user_file}:interrupting"
        return [model, "-o", tmp_path / "m.nnr", *DROP, "--evaluate", evaluate]

    def test_the_same_command_goes_on(
        self, run: Run, model: Path, user_file: Path, tmp_path: Path, arguments: list[Any]
    ) -> None:
        log = tmp_path / "m.nnr.search.json"
        expected = searched(run, model, "--dry-run", *DROP, "--evaluate", f"{user_file}:largest")
        assert len(expected["search"]["evaluations"]) > 1
        assert run("nnr-encode", *arguments).code == 130
        assert log.exists()
        assert not (tmp_path / "m.nnr").exists()
        done = run("nnr-encode", *arguments, "--json")
        assert done.code == (0 if len(expected["search"]["evaluations"]) < 4 else 130)
        while done.code == 130:
            done = run("nnr-encode", *arguments, "--json")
        found = json.loads(done.out)
        assert found["search"]["evaluations"] == expected["search"]["evaluations"]
        assert found["search"]["resumed"] > 0
        assert "of the search had been measured before an interruption" in done.err
        assert not log.exists()

    def test_not_by_the_log_of_another_function(
        self, run: Run, user_file: Path, arguments: list[Any]
    ) -> None:
        assert run("nnr-encode", *arguments).code == 130
        arguments[-1] = f"{user_file}:largest"
        assert searched(run, *arguments)["search"]["resumed"] == 0

    def test_nothing_is_left_without_an_output(
        self, run: Run, model: Path, user_file: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("torch")
        before = {path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)}
        evaluate = f"{user_file}:interrupting"
        done = run("nnr-encode", model, "--dry-run", *DROP, "--evaluate", evaluate)
        assert done.code == 130
        assert {p for p in tmp_path.rglob("*") if "__pycache__" not in str(p)} == before


class TestReport:
    def test_page(self, run: Run, model: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        output, page = tmp_path / "m.nnr", tmp_path / "page.html"
        arguments = [model, "-o", output, "--max-nmse", "0.01", "--report", page]
        found = searched(run, *arguments)
        text = page.read_text()
        assert text.count("<svg") == 1
        assert text.count('class="mark"') == len(found["search"]["evaluations"])
        assert f"{model.name}: max nmse 0.01" in text
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)  # needs no other file
        done = run("nnr-encode", *arguments)
        assert done.code == 2
        output.unlink()
        done = run("nnr-encode", *arguments)
        assert done.code == 2
        assert "--report: " in done.err
        assert "exists already; -f overwrites it" in done.err
        assert not output.exists()

    def test_not_in_place_of_the_output(self, run: Run, model: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        output = tmp_path / "m.nnr"
        done = run("nnr-encode", model, "-o", output, "-f", "--max-nmse", "0.1", "--report", output)
        assert done.code == 2
        assert "is the input, or the output" in done.err

    def test_without_matplotlib(
        self, run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        arguments = ["--max-nmse", "0.1", "--report", tmp_path / "page.html"]
        done = run("nnr-encode", model, "-o", tmp_path / "m.nnr", *arguments)
        assert done.code == 2
        assert "--report: needs matplotlib: pip install 'nnr-codec[eval]'" in done.err
        assert not (tmp_path / "m.nnr").exists()
