"""Streams with any model map, and the ways to read them, for the tests of hostile ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

import nnr_codec
from nnr_codec.bitstream import Topology, read_units, write_record
from nnr_codec.decoding.stream_decoder import StreamDecoder

LR: dict[str, Any] = {"form": "lr", "shape": [4, 6], "factors": ["g", "h"]}
READERS: list[Callable[..., Any]] = [
    nnr_codec.decode,
    nnr_codec.open,
    lambda data, **options: list(StreamDecoder(**options).outline(data)),
]


def tensors() -> dict[str, np.ndarray]:
    """Factors g (4 x 2) and h (2 x 6), integers i (2 x 6), a second g2, a cube and a vector."""
    rng = np.random.default_rng(0)
    shapes = {"g": (4, 2), "h": (2, 6), "g2": (4, 2), "cube": (4, 2, 3)}
    found = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    return {**found, "i": np.ones((2, 6), np.int32), "v": np.ones(4, np.float32)}


def stream_with(data: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> bytes:
    """The stream of `tensors` with this map."""
    plain = nnr_codec.encode(arrays or tensors()).data or b""
    units = [bytes(unit.data) for unit in read_units(plain)]
    text = json.dumps({"nnr_model_map": 1, **data}, separators=(",", ":"))
    return b"".join([*units[:2], write_record(Topology(topology_data=text)), *units[3:]])


def weight(**changes: Any) -> dict[str, Any]:
    return {"factorizations": {"w": {**LR, **changes}}}


def nnr_factors(*shapes: tuple[int, int]) -> Any:
    from nnr_codec.factorization.forms import LowRank

    factors = tuple(np.ones(shape, np.float32) for shape in shapes)
    return LowRank((shapes[0][0], shapes[1][1]), factors)
