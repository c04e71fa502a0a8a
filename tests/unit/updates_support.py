"""Models and updates of them, which the tests of updates share."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.bitstream import Topology, read_units, write_record
from nnr_codec.model import Array

Arrays = dict[str, Array]
UNGROUPED = EncodeOptions(group=False)


def two_matrices() -> Arrays:
    """Weights of two layers."""
    rng = np.random.default_rng(3)
    return {
        "a": rng.normal(0, 0.05, (64, 48)).astype(np.float32),
        "b": rng.normal(0, 0.05, (32, 64)).astype(np.float32),
    }


def every_type(seed: int = 0) -> Arrays:
    """A tensor of each element type, a scalar, and an empty one."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {
        "float32": rng.normal(0, 0.1, (32, 24)).astype(np.float32),
        "float64": rng.normal(0, 0.1, (16, 8)),
        "float16": rng.normal(0, 0.1, (16, 16)).astype(np.float16),
        "bfloat16": rng.normal(0, 0.1, (16, 16)).astype(ml_dtypes.bfloat16),
        "float8": rng.normal(0, 1, (16, 16)).astype(ml_dtypes.float8_e4m3fn),
        "powers": rng.integers(100, 140, 20).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu),
        "bool": rng.integers(0, 2, 40).astype(bool),
        "scalar": np.float32(0.7).reshape(()),
        "empty": np.zeros((0, 3), np.float32),
        "wide": rng.integers(-(2**60), 2**60, 12),
        "bias": rng.normal(0, 0.1, 24).astype(np.float32),
    }
    for name in ("int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"):
        arrays[name] = rng.integers(0, 100, 30).astype(name)
    return arrays


def moved(arrays: Arrays, scale: float = 0.03, seed: int = 1) -> Arrays:
    """The same tensors with a few other values."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, values in arrays.items():
        flat = values.reshape(-1).copy()
        if flat.size:
            some = rng.random(flat.size) < 0.3
            some[0] = True
            if flat.dtype == bool:
                flat[some] ^= True
            elif flat.dtype.kind in "iu":
                flat[some] += flat.dtype.type(1)
            elif name == "powers":
                flat = np.where(some, flat.view(np.uint8) + 1, flat.view(np.uint8)).astype(np.uint8)
                flat = flat.view(values.dtype)
            else:
                change = rng.normal(0, scale, flat.size) * some
                flat = (flat.astype(np.float64) + change).astype(values.dtype)
        made[name] = flat.reshape(values.shape)
    return made


def assert_same(found: Arrays, expected: Arrays) -> None:
    """Compare names in order, types, shapes and all bits."""
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].shape == values.shape, name
        assert found[name].tobytes() == values.tobytes(), name


def with_map(stream: bytes, **changes: Any) -> bytes:
    """A stream whose map has other entries; None removes one, and a dict changes one."""
    units = [bytes(unit.data) for unit in read_units(stream)]
    topology = units[2]
    start = topology.index(b"{")
    data = json.loads(topology[start : topology.rindex(b"}") + 1])
    for key, value in changes.items():
        merged = {**data.get(key, {}), **value} if isinstance(value, dict) else value
        data[key] = merged
        if value is None:
            del data[key]
        elif isinstance(value, dict):
            data[key] = {k: v for k, v in merged.items() if v is not None}
    text = json.dumps(data, separators=(",", ":"))
    return b"".join([*units[:2], write_record(Topology(topology_data=text)), *units[3:]])


def encoded(model: Any, options: EncodeOptions | None = None, **arguments: Any) -> bytes:
    """A model's stream, which is verified."""
    made = nnr_codec.encode(model, options=options, verify=True, **arguments)
    assert made.data is not None
    return made.data
