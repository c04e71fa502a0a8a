"""Small streams that are added to others: updates of a base, and quality layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from device_support import BASE, LAYERS, Request
from fuzz_support import head
from small_streams import unit

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec import bitstream as nnr
from nnr_codec.support.digest import digest

OPTIONS = EncodeOptions(qp=-16)


def model(seed: int = 0, size: int = 34) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (size, 31)).astype(np.float32)
    return {
        "w": values,
        "half": values.astype(np.float16),
        "wide": values[:5].astype(np.float64),
        "brain": values[5:9].astype(ml_dtypes.bfloat16),
        "step": np.array(7),
        "bytes": rng.integers(-90, 90, (4, 9)).astype(np.int8),
        "flag": values[:3] > 0,
    }


def changed(tensors: dict[str, Any]) -> dict[str, Any]:
    """A later version: other values, a tensor more, another shape, one less."""
    later = {name: values.copy() for name, values in tensors.items() if name != "bytes"}
    for name in ("w", "half", "wide", "brain"):
        later[name] = (later[name].astype(np.float32) * 1.3).astype(later[name].dtype)
    later["step"] = np.array(-9)
    later["flag"][1] = ~later["flag"][1]
    later["new"] = np.arange(12, dtype=np.float32).reshape(3, 4)
    return later


def series(options: EncodeOptions) -> list[bytes]:
    """A base and two updates of it."""
    versions = [model()]
    streams: list[bytes] = []
    for _ in range(3):
        result = nnr_codec.encode(versions[-1], options=options, base=streams)
        streams.append(result.data or b"")
        versions.append(changed(versions[-1]) if len(versions) == 1 else versions[-1])
    return streams


def layered() -> bytes:
    return nnr_codec.encode(model(), options=replace(OPTIONS, quality_layers=3)).data or b""


def update_requests(way: int) -> list[Request]:
    """Updates, quantized and exact, and a file of quality layers."""
    requests = [Request(layered(), (), way | LAYERS)]
    for lossless in (False, True):
        streams = series(replace(OPTIONS, lossless=lossless))
        requests += [Request(s, tuple(streams[:n]), way | BASE) for n, s in enumerate(streams)]
    return requests


def mapped_stream(
    entries: Mapping[str, Any], base: Sequence[bytes] = (), more: Any = None, **integers: Any
) -> bytes:
    """A stream of INT units with a map; an update, if a base is given.

    `more`: what `base` of the map says besides its digests.
    """
    start, context = head()
    text: dict[str, Any] = {"nnr_model_map": 2, **entries}
    if base:
        *earlier, last = base
        made = digest(nnr_codec.decode(last, base=earlier).items())
        text["base"] = {"stream": hashlib.sha256(last).hexdigest(), "digest": made, **(more or {})}
    record = nnr.Topology(topology_data=json.dumps(text, separators=(",", ":")))
    units = [
        unit(name, values, context, payload_type=nnr.PayloadType.INT)
        for name, values in integers.items()
    ]
    return start + nnr.write_record(record) + b"".join(units)
