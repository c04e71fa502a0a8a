"""Model maps whose factored weights are wrong: refused by the headers, before any is formed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hostile_support import LR, READERS, stream_with, weight

import nnr_codec
from nnr_codec import BitstreamError, InvalidBitstream
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.factorization.map_checks import MapError
from nnr_codec.factorization.model_map import parse_model_map


@pytest.mark.parametrize("read", READERS)
def test_a_good_map(read: Any) -> None:
    read(stream_with(weight()))
    found = nnr_codec.decode(stream_with(weight()))
    assert list(found) == ["w", "g2", "cube", "i", "v"]
    factors = nnr_codec.decode(stream_with({}))
    np.testing.assert_allclose(found["w"], factors["g"] @ factors["h"], rtol=1e-5)


DAMAGED: dict[str, dict[str, Any]] = {
    "no object": {"factorizations": []},
    "no entry": {"factorizations": {"w": 7}},
    "unknown form": weight(form="svd"),
    "form of no text": weight(form=["lr"]),
    "unknown key": weight(rank=2),
    "no shape": {"factorizations": {"w": {"form": "lr", "factors": ["g", "h"]}}},
    "no factors": {"factorizations": {"w": {"form": "lr", "shape": [4, 6]}}},
    "factors as an object": weight(factors={"g": 1, "h": 2}),
    "names of no text": weight(factors=["g", 1]),
    "no factor at all": weight(factors=[]),
    "one factor": weight(factors=["g"]),
    "too many factors": weight(factors=["g", "h", "g2"]),
    "a million factors": weight(factors=[f"f{i}" for i in range(100_000)]),
    "one factor twice": weight(shape=[4, 4], factors=["g", "g"]),
    "factors in the wrong order": weight(factors=["h", "g"]),
    "another shape": weight(shape=[4, 7]),
    "a transposed shape": weight(shape=[6, 4]),
    "a vector": weight(shape=[24]),
    "a scalar": weight(shape=[]),
    "an empty weight": weight(shape=[4, 0]),
    "a negative dimension": weight(shape=[-4, -6]),
    "a shape of floats": weight(shape=[4.0, 6.0]),
    "a huge dimension": weight(shape=[4, 2**41]),
    "too many dimensions": weight(shape=[4, 6] + [1] * 31),
    "wrong dimensions for the form": weight(form="cp", factors=["g", "h"]),
    "a form of more factors": weight(
        form="ht2", shape=[4, 6, 1, 1], factors=["g", "h", "cube", "v"]
    ),
    "a factor of three dimensions": weight(factors=["cube", "h"]),
    "a vector as a factor": weight(shape=[4, 1], factors=["v", "h"]),
    "integers as a factor": weight(factors=["g", "i"]),
    "integers as a factor, called integers": {
        **weight(factors=["g", "i"]),
        "tensors": {"i": {"dtype": "int16"}},
    },
    "integers as a factor, called floats": {
        **weight(factors=["g", "i"]),
        "tensors": {"i": {"dtype": "float32"}},
    },
    "a factor of another shape by the map": {**weight(), "tensors": {"g": {"shape": [8]}}},
    "missing factor": weight(factors=["g", "x"]),
    "another dtype": weight(dtype="int32"),
    "unknown dtype": weight(dtype="complex64"),
    "a weight that is a tensor": {"factorizations": {"v": LR}},
    "a weight that has a meaning": {**weight(), "tensors": {"w": {"dtype": "float16"}}},
    "a weight that is its own factor": {"factorizations": {"g": {**LR, "shape": [4, 6]}}},
    "weights of each other": {
        "factorizations": {"a": {**LR, "factors": ["b", "h"]}, "b": {**LR, "factors": ["a", "h"]}}
    },
    "a weight of a weight": {"factorizations": {"a": LR, "b": {**LR, "factors": ["a", "h"]}}},
    "two weights that end alike": {"factorizations": {"a": LR, "b": LR}},
    "two of one last factor": {
        "factorizations": {"a": LR, "b": {**LR, "shape": [4, 6], "factors": ["g", "h"]}}
    },
    "a weight that is an extra": {
        **weight(),
        "extras": [{"name": "w", "after": "v", "tied_to": "v"}],
    },
    "a factor that is an extra": {
        **weight(factors=["e", "h"]),
        "extras": [{"name": "e", "tied_to": "g", "after": "g"}],
    },
    "a factor that is an empty extra": {
        **weight(factors=["e", "h"]),
        "extras": [{"name": "e", "dtype": "float32", "shape": [0]}],
    },
    "a factor that is a part": {
        **weight(factors=["i", "h"]),
        "tensors": {"v": {"dtype": "float32", "table": "i"}},
    },
    "a weight that is a part": {
        **weight(),
        "tensors": {"v": {"dtype": "float32", "table": "w"}},
    },
    "an extra before what it is tied to": {
        **weight(),
        "extras": [{"name": "t", "after": "g", "tied_to": "w"}],
    },
    "a name of a zero character": {"factorizations": {"w\0": LR}},
    "a name that is no Unicode": {"factorizations": {"\ud800": LR}},
    "a long name": {"factorizations": {"w" * 5000: LR}},
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_maps(case: str, read: Any) -> None:
    with pytest.raises(BitstreamError) as caught:
        read(stream_with(DAMAGED[case]))
    assert isinstance(caught.value, InvalidBitstream)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("layers", ["dense", "factorized"])
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_maps_from_a_stream_in_pieces(case: str, layers: Any) -> None:
    with pytest.raises(InvalidBitstream):
        list(StreamDecoder().tensors(stream_with(DAMAGED[case]), layers))


@pytest.mark.parametrize(
    "rest",
    [
        ',"factorizations":{"w":' * 30_000,
        ',"factorizations":{"w":{"factors":' + "[" * 100_000,
        ',"factorizations":{"w":{},"w":{}}}',
        ',"factorizations":{"w":{"form":"lr","form":"cp"}}}',
        ',"factorizations":{"w":{"form":"lr","shape":[' + "9" * 5000 + '],"factors":["a","b"]}}}',
        ',"factorizations":{"w":{"form":"lr","shape":[NaN],"factors":["a","b"]}}}',
        ',"factorizations":null}',
    ],
)
def test_damaged_texts(rest: str) -> None:
    with pytest.raises(MapError):
        parse_model_map('{"nnr_model_map":1' + rest, 32)
