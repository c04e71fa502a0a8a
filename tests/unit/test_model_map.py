"""The model map: element types, scalars, empty tensors and ties come back; damaged maps do not."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnr_codec
from nnr_codec.bitstream import Topology, read_units, write_record
from nnr_codec.factorization.extras import Extra
from nnr_codec.factorization.map_checks import MapError
from nnr_codec.factorization.model_map import ModelMap, parse_model_map
from nnr_codec.factorization.tensor_rules import TensorRule
from nnr_codec.model import Model, Parameter

DTYPES = [
    *(np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *map(np.dtype, ("bool", "float16", "float32", "float64")),
    *(np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")),
]
SHAPES = [(), (1,), (3,), (2, 3), (0,), (4, 0, 2)]
EXACT = nnr_codec.EncodeOptions(exclude=("*",))


def values(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Small numbers that every element type can hold."""
    count = int(np.prod(shape))
    return (np.arange(count) % 2).reshape(shape).astype(dtype)


def parameters(arrays: dict[str, np.ndarray], ties: dict[str, str]) -> Model:
    found = [
        dataclasses.replace(Parameter.from_array(name, array), tied_to=ties.get(name))
        for name, array in arrays.items()
    ]
    return Model(found)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.sampled_from(SHAPES)), max_size=8),
    st.lists(st.integers(0, 7), max_size=3),
)
def test_models_come_back_as_they_were(
    kinds: list[tuple[np.dtype[Any], tuple[int, ...]]], tied: list[int]
) -> None:
    """Names, order, element types, shapes and values, ties included, of any mixture."""
    arrays = {f"t{i}": values(dtype, shape) for i, (dtype, shape) in enumerate(kinds)}
    ties = {f"alias{n}": f"t{i}" for n, i in enumerate(tied) if i < len(kinds)}
    arrays |= {alias: arrays[name] for alias, name in ties.items()}
    data = nnr_codec.encode(parameters(arrays, ties), options=EXACT).data
    decoded = nnr_codec.decode(data)
    assert list(decoded) == list(arrays)
    with nnr_codec.open(data) as stream:
        assert list(stream) == list(arrays)
        for name, array in arrays.items():
            for found in (decoded[name], stream[name]):
                assert (found.dtype, found.shape) == (array.dtype, array.shape)
                assert found.tobytes() == array.tobytes()


def test_a_tie_is_coded_once() -> None:
    weight = np.random.default_rng(0).normal(0, 1, (40, 30)).astype(np.float32)
    arrays = {"a": weight, "b": weight}
    tied = nnr_codec.encode(parameters(arrays, {"b": "a"}))
    copies = nnr_codec.encode(parameters(arrays, {}))
    assert len(tied.data) < 0.6 * len(copies.data)
    assert list(nnr_codec.decode(tied.data, only="b")) == ["b"]


@pytest.mark.parametrize("only", ["[eb]", "[te]", "[!a]", "e", "[!be]"])
def test_a_part_has_the_order_of_the_whole(only: str) -> None:
    arrays = {"a": np.ones((4, 4)), "e": np.zeros((0, 2)), "b": np.ones((3, 3)), "c": np.ones(2)}
    arrays |= {"t": arrays["a"], "d": np.ones(3)}
    data = nnr_codec.encode(parameters(arrays, {"t": "a"}), options=EXACT).data
    names = [name for name in arrays if fnmatch.fnmatchcase(name, only)]
    assert list(nnr_codec.decode(data, only=only)) == names


def test_quantized_bfloat16() -> None:
    weight = np.random.default_rng(0).normal(0, 1, (40, 30)).astype(ml_dtypes.bfloat16)
    found = nnr_codec.decode(nnr_codec.encode({"w": weight}).data)["w"]
    assert found.dtype == weight.dtype
    assert np.abs(found.astype(np.float32) - weight.astype(np.float32)).max() < 0.02


def test_a_plain_model_has_no_map() -> None:
    data = nnr_codec.encode({"w": np.ones((2, 2), np.float32)}).data
    assert write_record(Topology()) in data


MAP = ModelMap(
    {"s": TensorRule(shape=()), "u": TensorRule("uint8"), "both": TensorRule("bool", (1, 1))},
    (Extra("e", None, None, "float16", (0, 3)), Extra("t", "u", "s")),
)


def test_text_and_back() -> None:
    assert parse_model_map(MAP.to_text(), 32) == MAP
    assert parse_model_map("", 32) is parse_model_map('{"other":1}', 32) is None


@pytest.mark.parametrize(
    "rest",
    [
        "",
        ",",
        ',"tensors":[]}',
        ',"tensors":{"a":1}}',
        ',"tensors":{"a":{"dtype":"complex64"}}}',
        ',"tensors":{"a":{"dtype":7}}}',
        ',"tensors":{"a":{"shape":[-1]}}}',
        ',"tensors":{"a":{"shape":[1.0]}}}',
        ',"tensors":{"a":{"shape":[true]}}}',
        ',"tensors":{"a":{"shape":[1e999]}}}',
        ',"tensors":{"a":{"shape":[NaN]}}}',
        ',"tensors":{"a":{"shape":' + "[" * 100_000 + "}}}",
        ',"tensors":{"a":{"shape":' + json.dumps([1] * 33) + "}}}",
        ',"tensors":{"a":{"shape":[' + "9" * 5000 + "]}}}",
        ',"tensors":{"a":{},"a":{}}}',
        ',"tensors":{"a":{"stride":[1]}}}',
        ',"extras":{}}',
        ',"extras":[{"name":"a"}]}',
        ',"extras":[{"name":"a","dtype":"float32","shape":[2]}]}',
        ',"extras":[{"name":"a","dtype":"float32","shape":[0,1099511627777]}]}',
        ',"extras":[{"name":"a","dtype":"float32","shape":[0,1099511627776,2]}]}',
        ',"extras":[{"name":"a","tied_to":1}]}',
        ',"extras":[{"name":1,"tied_to":"w"}]}',
        ',"extras":[{"name":"a","tied_to":"w","shape":[0]}]}',
        ',"extras":[{"name":"a","after":"w","tied_to":"w"},{"name":"a","after":"w","tied_to":"w"}]}',
        ',"unknown":1}',
        ',"extras":[{"name":"\\ud800","dtype":"float32","shape":[0]}]}',
        ',"extras":[{"name":"a\\u0000","dtype":"float32","shape":[0]}]}',
        ',"nnr_model_map":1}',
    ],
)
def test_damaged_texts(rest: str) -> None:
    with pytest.raises(MapError):
        parse_model_map('{"nnr_model_map":1' + rest, 32)


@pytest.mark.parametrize("version", ["3", "0", "1.0", "true", '"1"', "null", "[]"])
def test_other_versions(version: str) -> None:
    with pytest.raises(nnr_codec.UnsupportedFeature, match="nnr_model_map"):
        parse_model_map('{"nnr_model_map":' + version + "}", 32)


def stream_with(data: dict[str, Any], *, last: bool = False) -> bytes:
    """A stream of tensors i (INT, two elements) and w (four floats) with this map."""
    model = {"i": np.array([1, 300], np.int32), "w": np.ones((2, 2), np.float32)}
    units = [bytes(unit.data) for unit in read_units(nnr_codec.encode(model).data)]
    text = json.dumps({"nnr_model_map": 1, **data}, separators=(",", ":"))
    topology = write_record(Topology(topology_data=text))
    units[2:3] = [] if last else [topology]
    return b"".join(units) + (topology if last else b"")


@pytest.mark.parametrize(
    "data",
    [
        {"tensors": {"missing": {"dtype": "float32"}}},
        {"tensors": {"i": {"dtype": "uint8"}}},
        {"tensors": {"i": {"dtype": "bool"}}},
        {"tensors": {"i": {"dtype": "float32"}}},
        {"tensors": {"w": {"dtype": "int8"}}},
        {"tensors": {"w": {"shape": [5]}}},
        {"tensors": {"w": {"shape": []}}},
        {"extras": [{"name": "w", "dtype": "float32", "shape": [0]}]},
        {"extras": [{"name": "e", "after": "missing", "dtype": "float32", "shape": [0]}]},
        {"extras": [{"name": "t", "after": "w", "tied_to": "missing"}]},
        {"extras": [{"name": "t", "after": "i", "tied_to": "w"}]},
        {"extras": [{"name": "t", "tied_to": "i"}]},
        {
            "extras": [
                {"name": "t", "after": "w", "tied_to": "u"},
                {"name": "u", "after": "w", "tied_to": "t"},
            ]
        },
    ],
)
def test_maps_that_do_not_fit_their_stream(data: dict[str, Any]) -> None:
    with pytest.raises(nnr_codec.InvalidBitstream):
        nnr_codec.decode(stream_with(data))


def test_a_map_comes_once_and_first() -> None:
    good = {"tensors": {"w": {"shape": [4]}}}
    assert nnr_codec.decode(stream_with(good))["w"].shape == (4,)
    with pytest.raises(nnr_codec.InvalidBitstream, match="behind"):
        nnr_codec.decode(stream_with(good, last=True))


def test_the_size_of_a_map_is_limited() -> None:
    data = stream_with({"tensors": {"w": {"shape": [4]}}})
    with pytest.raises(nnr_codec.LimitExceeded, match="max_topology_bytes"):
        nnr_codec.decode(data, limits=nnr_codec.DecodeLimits(max_topology_bytes=20))


def test_ties_count_as_elements() -> None:
    """A small map must not multiply what a stream costs."""
    ties = [{"name": f"t{i}", "after": "w", "tied_to": "w"} for i in range(10)]
    data = stream_with({"extras": ties})
    assert len(nnr_codec.decode(data)) == 12
    assert len(nnr_codec.decode(data, limits=nnr_codec.DecodeLimits(max_elements=46))) == 12
    for read in (nnr_codec.decode, nnr_codec.open):
        with pytest.raises(nnr_codec.LimitExceeded, match="max_elements"):
            read(data, limits=nnr_codec.DecodeLimits(max_elements=45))


def test_a_chain_of_ties() -> None:
    weight = np.ones((3, 2), np.float32)
    model = parameters({"a": weight, "b": weight, "c": weight}, {"b": "a", "c": "b"})
    assert list(nnr_codec.decode(nnr_codec.encode(model).data)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("\ud800", (0,)),
        ("\ud800", (1,)),
        ("a\0", (0,)),
        ("a" * 5000, (0,)),
        (7, (0,)),
        ("a", (0,) + (1,) * 32),
        ("a", (0, 2**41)),
    ],
)
def test_what_no_stream_can_say_is_refused(name: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(nnr_codec.InvalidModel):
        nnr_codec.encode({name: np.zeros(shape, np.float32)})


def test_size_is_checked_before_reading() -> None:
    def load() -> np.ndarray:
        raise MemoryError

    huge = Parameter("w", (2**34,), np.dtype(np.float32), load)
    with pytest.raises(nnr_codec.InvalidModel, match="elements"):
        nnr_codec.encode(Model([huge]))


def test_powers_of_two_are_not_quantized() -> None:
    scales = np.array([0.5, 1, 2**-20, 2**-100]).astype(ml_dtypes.float8_e8m0fnu)
    found = nnr_codec.decode(nnr_codec.encode({"s": scales}).data)["s"]
    assert found.tobytes() == scales.tobytes()


@pytest.mark.parametrize("target", ["c.weight", "c.weight_G"])
@pytest.mark.parametrize("layers", ["dense", "factorized"])
def test_ties_to_what_is_not_handed_out(target: str, layers: Any) -> None:
    """A tensor tied to a product comes with the factors too, and one tied to a factor without."""
    vectors = Path(__file__).parents[1] / "golden" / "peer_vectors"
    stream = (vectors / "dc_p0_block_scan0_dq.nnc").read_bytes()
    units = [bytes(unit.data) for unit in read_units(stream)]
    extra = {"name": "t", "after": "c.weight", "tied_to": target}
    text = json.dumps({"nnr_model_map": 1, "extras": [extra]}, separators=(",", ":"))
    data = b"".join([*units[:2], write_record(Topology(topology_data=text)), *units[3:]])
    whole = {**nnr_codec.decode(stream), **nnr_codec.decode(stream, layers="factorized")}
    for tensors in (nnr_codec.decode(data, layers=layers), nnr_codec.open(data, layers=layers)):
        np.testing.assert_array_equal(tensors["t"], whole[target])
