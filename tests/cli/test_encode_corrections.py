"""nnr-encode's corrections after quantization, with samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_support import MODELS, Run, random_weights, run_script, save

from nnr_codec import decode

SEPARABLE = MODELS / "digits_separable.safetensors"
USER_FILE = """
import sys
sys.path.insert(0, {folder!r})
import digits_networks

def calibration():
    images = [images for images, _ in digits_networks.batches("digits_calibration.npz", 50)]
    return digits_networks.separable_network(), images[:4]
"""


@pytest.fixture
def calibrate(tmp_path: Path) -> list[str]:
    path = tmp_path / "networks.py"
    path.write_text(USER_FILE.format(folder=str(MODELS.with_name("subjects"))))
    return ["--calibrate", f"{path}:calibration"]


@pytest.fixture
def encoded(run: Run, calibrate: list[str]) -> Any:
    pytest.importorskip("torch")

    def encoded(*arguments: str) -> Any:
        done = run("nnr-encode", SEPARABLE, "--dry-run", "--qp", "-26", *calibrate, *arguments)
        assert done.code == 0, done.err
        return json.loads(done.out) if "--json" in arguments else done.out

    return encoded


def test_by_itself(encoded: Any) -> None:
    found = encoded("--json")["correction"]
    # Whether vectors can add to that is decided by roundings, which are not those of every machine.
    assert found["methods"] in (["moved"], ["moved", "channels"])
    moved, vectors = len(found["weights"]), len(found["tensors"])
    assert moved > 3
    assert (vectors > 0) == ("channels" in found["methods"])
    assert found["after"] < found["before"]
    corrected = f", {vectors} corrected vectors" if vectors else ""
    assert f"{moved} moved weights{corrected} (KL held back" in encoded()


@pytest.mark.parametrize("switch", [["--no-correct"], ["--preset", "fast"]])
def test_switched_off(encoded: Any, switch: list[str]) -> None:
    assert encoded("--json", *switch)["correction"] is None


def test_tuned(encoded: Any) -> None:
    found = encoded("--json", "--tune", "--no-correct")["correction"]
    assert found["methods"] == ["tuned"]


def test_nothing_to_learn_from(run: Run) -> None:
    done = run("nnr-encode", SEPARABLE, "--dry-run", "--tune")
    assert done.code == 2
    assert "--tune: needs --calibrate" in done.err


PRINTING = """
import os, subprocess, torch
print("loading")
os.write(1, b"below Python")
subprocess.run(["echo", "in a child"])

class Printing(torch.nn.Linear):
    def forward(self, values):
        print("running")
        return super().forward(values)

def calibration():
    return Printing(4, 3), [torch.randn(8, 4)]

def score(module):
    print("judging")
    return 1.0
"""


def test_what_a_users_code_prints_is_not_in_the_output(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    user = tmp_path / "user.py"
    user.write_text(PRINTING)
    weights = {"weight": random_weights(3, 4), "bias": random_weights(3)}
    model = save(tmp_path / "model.safetensors", weights)
    words = [model, "--calibrate", f"{user}:calibration"]
    searched = ["--max-drop", "0.5", "--evaluate", f"{user}:score", "--dry-run", "--json"]
    done = run("nnr-encode", *words, *searched)
    assert json.loads(done.out)["search"]["target"] == "max_drop"
    for word in ("loading", "running", "judging"):
        assert word in done.err
    piped = run_script("nnr-encode", *words, "-o", "-", text=False)
    for text in (b"loading", b"running", b"below Python", b"in a child"):
        assert text in piped.stderr
    assert {name: values.shape for name, values in decode(piped.stdout).items()} == {
        "weight": (3, 4),
        "bias": (3,),
    }


FAILING_LATER = """
import torch

class Later(torch.nn.Linear):
    calls = 0
    def forward(self, values):
        Later.calls += 1
        if Later.calls > {calls}:
            raise RuntimeError("no more")
        return super().forward(values)

def calibration():
    torch.manual_seed(0)
    return Later(4, 3), [torch.randn(8, 4) for _ in range(8)]
"""


def test_modules_that_fail_while_a_target_is_measured(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    user = tmp_path / "user.py"
    weights = {"weight": random_weights(3, 4), "bias": random_weights(3)}
    model = save(tmp_path / "model.safetensors", weights)
    words = [model, "--dry-run", "--max-kl", "0.01", "--no-correct"]
    user.write_text(FAILING_LATER.format(calls=10**6))
    assert run("nnr-encode", *words, "--calibrate", f"{user}:calibration").code == 0
    user.write_text(FAILING_LATER.format(calls=20))
    done = run("nnr-encode", *words, "--calibrate", f"{user}:calibration")
    assert done.code == 2
    assert "user.py:calibration: RuntimeError: no more (line 9 of user.py)" in done.err
