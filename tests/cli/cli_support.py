"""What the tests of the command line share: how commands are run, small models and streams."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import nnr_codec
from nnr_codec.bitstream import (
    Context,
    DataUnit,
    ModelParameterSet,
    ParameterTypes,
    PayloadType,
    StartUnit,
    parse_units,
    write_record,
)
from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.encoding.unit_encoder import CodedLevels, encode_data_unit
from nnr_codec.factorization.forms import FactoredWeight, JointRight, LowRank

Arrays = dict[str, np.ndarray]
MODELS = Path(__file__).parents[2] / "conformance" / "models"
DIGITS = MODELS / "digits_cnn.safetensors"
EVALUATOR = MODELS / "digits.py"
LONG = 120  # seconds, beyond which something hangs


@dataclass(frozen=True)
class Outcome:
    """What a command that ran in this process left."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def script(name: str) -> str:
    """Return the path of an installed command."""
    path = Path(sys.executable).with_name(name)
    assert path.exists(), f"{name} is not installed beside {sys.executable}"
    return str(path)


def run_script(name: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run an installed command in a process of its own, its output captured as text."""
    command = [script(name), *map(str, arguments)]
    options = {"capture_output": True, "text": True, "timeout": LONG, **options}
    return subprocess.run(command, check=False, **options)


def save(path: Path, arrays: Arrays) -> Path:
    """Write arrays to a model file."""
    save_checkpoint(path, arrays)
    return path


def load(path: Path) -> Arrays:
    """Read a model file."""
    with open_checkpoint(path) as model:
        return dict(model.arrays())


def random_weights(*shape: int, seed: int = 0, scale: float = 0.1) -> np.ndarray:
    """Return normally distributed weights."""
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def small_model(seed: int = 0) -> Arrays:
    """Return a model of two layers."""
    return {
        "first.weight": random_weights(40, 24, seed=seed),
        "first.bias": random_weights(40, seed=seed + 1),
        "second.weight": random_weights(16, 40, seed=seed + 2),
        "second.bias": random_weights(16, seed=seed + 3),
    }


def assert_same(found: Arrays, expected: Arrays) -> None:
    """Compare names, order, types, shapes and bits."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def decomposed_stream() -> tuple[bytes, np.ndarray, np.ndarray]:
    """Return a stream with the weight "layer" (6 x 8) as factors; and these, G (6 x 2), H (2 x 8).

    The step size is 1, so that the factors are the integers.
    """
    rng = np.random.default_rng(5)
    g, h = (rng.integers(-4, 5, shape).astype(np.int32) for shape in ((6, 2), (2, 8)))
    record = DataUnit(
        PayloadType.BLOCK,
        ["layer_G", "layer_H"],
        compressed_parameter_types=int(ParameterTypes.DC),
        decomposition_rank=2,
        g_number_of_rows=6,
        tensor_dimensions=[6, 8],
    )
    mps = ModelParameterSet()
    unit = encode_data_unit(record, {"G": CodedLevels(g), "H": CodedLevels(h)}, Context(0, mps))
    data = write_record(StartUnit()) + write_record(mps) + unit
    return data, g.astype(np.float32), h.astype(np.float32)


def factored_model() -> tuple[Arrays, dict[str, FactoredWeight]]:
    """Return a model of three weights (6 x 8) and a vector, and the weights' factors of rank 2.

    "a" is of low rank; "b" and "c" share a factor.
    """
    shared = random_weights(2, 6, seed=1)
    weights: dict[str, FactoredWeight] = {
        "a": LowRank((6, 8), (random_weights(6, 2, seed=2), random_weights(2, 8, seed=3))),
        "b": JointRight((6, 8), (random_weights(8, 2, seed=4), shared)),
        "c": JointRight((6, 8), (random_weights(8, 2, seed=5), shared)),
    }
    dense = {name: weight.to_dense() for name, weight in weights.items()}
    return {**dense, "d": random_weights(6)}, weights


def factored_stream() -> bytes:
    """Return the stream of `factored_model`: a block, factors that the map joins, and a vector."""
    model, weights = factored_model()
    return nnr_codec.encode(model, factorizations=weights).data or b""


def with_damaged_payload(stream: bytes, unit: int = -1) -> bytes:
    """Clear the stop bit of a unit's codeword, so that its header is whole and decoding fails."""
    parsed = list(parse_units(stream))[unit]
    damaged = bytearray(stream)
    damaged[parsed.payload_offset + len(parsed.payload) - 1] = 0
    return bytes(damaged)


def unbuffered() -> dict[str, str]:
    """Return the environment with Python's output unbuffered."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}
