"""What the headers say of a stream's tensors is what decoding gives; and it takes no memory."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import nnr_codec
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.decoding.unit_decoder import DecodedTensor
from nnr_codec.model import Model, Parameter

VECTORS = Path(__file__).parents[1] / "golden" / "peer_vectors"
INDEX: list[dict[str, Any]] = json.loads((VECTORS / "index.json").read_text())
DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64"]
SHAPES = [(), (3,), (2, 3), (0,), (4, 0, 2)]


def described(tensor: DecodedTensor) -> tuple[Any, ...]:
    values = tensor.values
    return tensor.name, tensor.role, values.shape, values.dtype, tensor.tied_to


def assert_outlined(
    source: bytes, layers: Literal["dense", "factorized"] = "dense", **options: Any
) -> list[str]:
    """Compare outline and tensors of a stream; return the names."""
    decoder = StreamDecoder(**options)
    outlines = [described(tensor) for tensor in decoder.outline(source, layers)]
    assert outlines == [described(tensor) for tensor in decoder.tensors(source, layers)]
    return [name for name, *_ in outlines]


def mixture() -> Model:
    """A model of every shape in every element type, each tensor followed by one tied to it."""
    parameters = []
    for dtype, shape in itertools.product(DTYPES, SHAPES):
        name = f"{dtype}{list(shape)}"
        values = (np.arange(int(np.prod(shape))) % 2).reshape(shape).astype(dtype)
        first = Parameter.from_array(name, values)
        parameters += [first, dataclasses.replace(first, name=f"{name} again", tied_to=name)]
    return Model(parameters)


@pytest.mark.parametrize("exclude", [(), ("*",)], ids=["quantized", "lossless"])
@pytest.mark.parametrize("only", [None, "*again", "float*", "nothing"])
def test_mixture(exclude: tuple[str, ...], only: str | None) -> None:
    model = mixture()
    data = nnr_codec.encode(model, options=nnr_codec.EncodeOptions(exclude=exclude)).data or b""
    names = assert_outlined(data, only=only)
    count = {None: 90, "*again": 45, "float*": 30, "nothing": 0}[only]
    assert len(names) == count
    if only is None:
        assert names == model.names()


@pytest.mark.parametrize("layers", ["dense", "factorized"])
@pytest.mark.parametrize("entry", INDEX, ids=[entry["name"] for entry in INDEX])
def test_streams_of_the_reference(
    entry: dict[str, Any], layers: Literal["dense", "factorized"]
) -> None:
    """Blocks, decomposed ones too, and updates, whose headers need no parents."""
    earlier = [
        (VECTORS / f"{other['name']}.nnc").read_bytes()
        for other in INDEX
        if "series" in entry
        and other.get("series") == entry["series"]
        and other["step"] < entry["step"]
    ]
    data = (VECTORS / f"{entry['name']}.nnc").read_bytes()
    assert assert_outlined(data, layers, parents=earlier)
    assert [described(tensor) for tensor in StreamDecoder().outline(data, layers)]


def test_values_take_no_memory() -> None:
    data = nnr_codec.encode({"w": np.zeros((1000, 1000), np.float32)}).data or b""
    (tensor,) = StreamDecoder().outline(data)
    assert tensor.values.shape == (1000, 1000)
    assert tensor.values.strides == (0, 0)


def test_limits_hold() -> None:
    data = nnr_codec.encode({"w": np.zeros((10, 10), np.float32)}).data or b""
    limits = nnr_codec.DecodeLimits(max_elements=99)
    with pytest.raises(nnr_codec.LimitExceeded, match="max_elements"):
        list(StreamDecoder(limits=limits).outline(data))
