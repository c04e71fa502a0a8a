"""The main job, with installed commands: a real network keeps its accuracy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from cli_support import DIGITS, EVALUATOR, LONG, load, run_script, save

from nnr_codec.bitstream.qp import step_size

SUMMARY = re.compile(
    r"digits_cnn: (\d+) kB -> (\d+) kB \(([\d.]+) %\), top-1 ([\d.]+) % -> ([\d.]+) %\n"
)
TENSORS = 17
WEIGHTS = 63754


def evaluated(after: Path, *bitstream: Path) -> tuple[float, ...]:
    """Return sizes before and after in kB, and their ratio and the accuracies in percent."""
    command = [sys.executable, str(EVALUATOR), str(DIGITS), str(after), *map(str, bitstream)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=True)
    match = SUMMARY.fullmatch(done.stdout)
    assert match, done.stdout
    return tuple(float(number) for number in match.groups())


def test_encode_decode_and_evaluate(tmp_path: Path) -> None:
    stream, decoded = tmp_path / "digits.nnr", tmp_path / "digits.safetensors"
    encoding = run_script("nnr-encode", DIGITS, "-o", stream)
    assert (encoding.returncode, encoding.stderr) == (0, "")
    assert f"{TENSORS} tensors, {WEIGHTS} weights" in encoding.stdout
    decoding = run_script("nnr-decode", stream, "-o", decoded)
    assert (decoding.returncode, decoding.stderr) == (0, "")
    assert f"{TENSORS} tensors, {WEIGHTS} weights" in decoding.stdout

    before_size, after_size, ratio, before, after = evaluated(decoded, stream)
    assert before > 99
    assert after == before
    assert after_size < before_size / 5
    assert ratio < 20

    original, restored = load(DIGITS), load(decoded)
    assert list(restored) == list(original)
    for name, values in original.items():
        assert restored[name].shape == values.shape
        assert restored[name].dtype == values.dtype
        # The multiples that one state of dependent quantization has are two steps apart.
        step = step_size(-38 if values.ndim > 1 else -75, density=2)
        assert np.abs(restored[name] - values).max() <= 2 * step
        assert not np.array_equal(restored[name], values)  # it was quantized


def test_info_agrees_with_the_file(digits_stream: Path) -> None:
    done = run_script("nnr-info", digits_stream, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    info = json.loads(done.stdout)
    assert info["bytes"] == digits_stream.stat().st_size
    assert info["tensors"] == len(info["per_tensor"]) == TENSORS
    assert info["elements"] == WEIGHTS
    with_shapes = {tensor["name"]: tuple(tensor["shape"]) for tensor in info["per_tensor"]}
    assert with_shapes == {name: values.shape for name, values in load(DIGITS).items()}


def test_evaluator_can_fail(tmp_path: Path) -> None:
    """Without its second layer the network only guesses."""
    arrays = load(DIGITS)
    arrays["conv2.weight"] = np.zeros_like(arrays["conv2.weight"])
    *_, before, after = evaluated(save(tmp_path / "broken.safetensors", arrays))
    assert before > 99
    assert after < 20


def test_coarse_steps_cost_accuracy(tmp_path: Path) -> None:
    stream, decoded = tmp_path / "coarse.nnr", tmp_path / "coarse.safetensors"
    assert run_script("nnr-encode", DIGITS, "-o", stream, "-q", "--qp", "4").returncode == 0
    assert run_script("nnr-decode", stream, "-o", decoded, "-q").returncode == 0
    *_, before, after = evaluated(decoded, stream)
    assert after < before - 20
