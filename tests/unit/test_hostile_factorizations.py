"""Model maps whose factored weights are wrong: refused by the headers, before any is formed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import (
    BitstreamError,
    DecodeLimits,
    InvalidBitstream,
    LimitExceeded,
    UnsupportedFeature,
)
from nnr_codec.bitstream import (
    Context,
    DataFormat,
    DataUnit,
    ModelParameterSet,
    ParameterTypes,
    PayloadType,
    Topology,
    read_units,
    write_mps,
    write_start,
    write_topology,
)
from nnr_codec.decoder import StreamDecoder
from nnr_codec.factorization.model_map import MapError, parse_model_map
from nnr_codec.unit_encoder import CodedLevels, encode_data_unit

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
    return b"".join([*units[:2], write_topology(Topology(topology_data=text)), *units[3:]])


def weight(**changes: Any) -> dict[str, Any]:
    return {"factorizations": {"w": {**LR, **changes}}}


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


def test_a_factor_of_a_block_is_none() -> None:
    """What the standard decomposes is whole already."""
    weights = {"w": nnr_factors((4, 2), (2, 6))}
    data = nnr_codec.encode({"w": weights["w"].to_dense()}, factorizations=weights).data or b""
    units = [bytes(unit.data) for unit in read_units(data)]
    for name, factors in (("x", ["w_G", "w_H"]), ("w", ["w_G", "w_H"])):
        entry = {"factorizations": {name: {**LR, "factors": factors}}}
        text = json.dumps({"nnr_model_map": 1, **entry}, separators=(",", ":"))
        hostile = b"".join([*units[:2], write_topology(Topology(topology_data=text)), *units[3:]])
        with pytest.raises(InvalidBitstream):
            nnr_codec.decode(hostile)


@pytest.mark.parametrize(
    ("entries", "shape"),
    [
        ({"w": {"shape": [4, 3, 2]}}, (4, 3, 2)),
        ({"w": {"shape": [4, 6, 1], "dtype": "float16"}}, (4, 6, 1)),
        ({"w": {"shape": [6, 4]}}, None),
        ({"w": {"shape": [24]}}, None),
        ({"w": {"dtype": "float8_e8m0fnu"}}, None),
        ({"w_G": {"shape": [8]}}, None),
        ({"w_H": {"shape": [3, 4]}}, None),
        ({"w_H": {"dtype": "float8_e8m0fnu"}}, None),  # of positive numbers alone
        ({"w_G": {"dtype": "float16"}}, (4, 6)),
    ],
)
def test_blocks_of_which_the_map_says_more(entries: Any, shape: Any) -> None:
    """What is told of the factors fits what is decoded, or nothing is."""
    weights = {"w": nnr_factors((4, 2), (2, 6))}
    data = nnr_codec.encode({"w": weights["w"].to_dense()}, factorizations=weights).data or b""
    units = [bytes(unit.data) for unit in read_units(data)]
    text = json.dumps({"nnr_model_map": 1, "tensors": entries}, separators=(",", ":"))
    topology = write_topology(Topology(topology_data=text))
    start = [unit for unit in units[:-1] if b"nnr_model_map" not in unit]
    data = b"".join([*start, topology, units[-1]])
    found = nnr_codec.open(data).factorizations
    assert {name: entry.shape for name, entry in found.items()} == ({"w": shape} if shape else {})
    dense, factors = nnr_codec.decode(data), nnr_codec.decode(data, layers="factorized")
    for name, entry in found.items():
        again = entry.dense([factors[factor] for factor in entry.factors])
        assert (again.shape, again.dtype) == (dense[name].shape, dense[name].dtype)
        np.testing.assert_allclose(again, dense[name], rtol=1e-2)


@pytest.mark.parametrize("part", ["w_G", "w_H", "w"])
def test_a_factor_of_a_block_is_no_part(part: str) -> None:
    """The headers do not tell that it is of the wrong type; what they say is shown all the same."""
    units = [bytes(unit.data) for unit in read_units(block("w_G", "w_H"))]
    vector = nnr_codec.encode({"z": np.ones(3, np.int32)}).data or b""
    entry = {"z": {"dtype": "float32", "table": part}}
    text = json.dumps({"nnr_model_map": 1, "tensors": entry}, separators=(",", ":"))
    last = bytes(list(read_units(vector))[-1].data)
    data = b"".join([*units[:2], write_topology(Topology(topology_data=text)), units[3], last])
    with nnr_codec.open(data) as stream:
        assert not stream.info().factorizations
        assert not stream.factorizations
    with pytest.raises(InvalidBitstream):
        nnr_codec.decode(data)


def block(*names: str, data_format: DataFormat | None = None) -> bytes:
    """A stream of one decomposed block, 4 x 6 of rank 2."""
    record = DataUnit(
        PayloadType.BLOCK,
        list(names),
        compressed_parameter_types=int(ParameterTypes.DC),
        decomposition_rank=2,
        g_number_of_rows=4,
        tensor_dimensions=[4, 6],
        nnr_decompressed_data_format=data_format,
    )
    mps = ModelParameterSet()
    coded = {
        role: CodedLevels(np.arange(size, dtype=np.int32) - 5)
        for role, size in (("G", 8), ("H", 12))
    }
    unit = encode_data_unit(record, coded, Context(0, mps)).data
    return b"".join([write_start(0), write_mps(mps, 0), write_topology(Topology()), unit])


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("names", [("_G", "x"), ("_G", "_G"), ("x_G", "_H"), ("x", "x_H")])
def test_factors_of_a_block_are_called_like_their_weight(names: Any, read: Any) -> None:
    """That of no name too."""
    read(block("_G", "_H"))
    with pytest.raises(InvalidBitstream, match="not X_G and X_H"):
        read(block(*names))


@pytest.mark.parametrize("data_format", [None, *DataFormat])
def test_element_types_of_blocks(data_format: DataFormat | None) -> None:
    """What is told of the weight has the type that decoding gives; integers are refused."""
    data = block("w_G", "w_H", data_format=data_format)
    with nnr_codec.open(data) as stream:
        found = stream.factorizations
        if data_format is not None and not data_format.name.startswith("FLOAT"):
            assert not found
            with pytest.raises(UnsupportedFeature):
                stream["w"]
            return
        expected = (data_format or DataFormat.FLOAT32).name.lower()
        assert found["w"].dtype == stream["w"].dtype.name == expected


def nnr_factors(*shapes: tuple[int, int]) -> Any:
    from nnr_codec.factorization.forms import LowRank

    factors = tuple(np.ones(shape, np.float32) for shape in shapes)
    return LowRank((shapes[0][0], shapes[1][1]), factors)


class TestLimits:
    """Small streams that ask for much."""

    @pytest.mark.parametrize("read", READERS)
    def test_a_huge_weight_of_small_factors(self, read: Any) -> None:
        """A gigabyte of elements for two factors that take no bytes; nothing is allocated."""
        size = 2**16
        arrays = {"g": np.zeros((size, 1), np.float32), "h": np.zeros((1, size), np.float32)}
        data = stream_with(weight(shape=[size, size]), arrays)
        assert len(data) < 1000
        with pytest.raises(LimitExceeded, match="max_elements_per_tensor"):
            read(data)
        limits = DecodeLimits(max_elements_per_tensor=2**32)
        with pytest.raises(LimitExceeded, match="max_elements"):
            read(data, limits=limits)

    @pytest.mark.parametrize("read", READERS)
    def test_weights_count_with_their_ties(self, read: Any) -> None:
        extras = [{"name": f"t{i}", "after": "w", "tied_to": "w"} for i in range(9)]
        data = stream_with({**weight(), "extras": extras})
        elements = sum(array.size for array in tensors().values()) + 10 * 24
        read(data, limits=DecodeLimits(max_elements=elements))
        with pytest.raises(LimitExceeded, match="max_elements"):
            read(data, limits=DecodeLimits(max_elements=elements - 1))

    @pytest.mark.parametrize("read", READERS)
    def test_many_weights_of_one_factor(self, read: Any) -> None:
        """Each of them has a factor of its own, and counts."""
        count = 50
        arrays = {"v": np.zeros((1, 1000), np.float32)}
        arrays |= {f"u{i}": np.zeros((1, 1), np.float32) for i in range(count)}
        entries = {
            f"w{i}": {"form": "joint_right", "shape": [1000, 1], "factors": [f"u{i}", "v"]}
            for i in range(count)
        }
        data = stream_with({"factorizations": entries}, arrays)
        elements = 1000 + count + 1000 * count
        read(data, limits=DecodeLimits(max_elements=elements))
        with pytest.raises(LimitExceeded, match="max_elements"):
            read(data, limits=DecodeLimits(max_elements=elements - 1))
        entries["again"] = {**entries["w49"]}
        data = stream_with({"factorizations": entries}, arrays)
        with pytest.raises(InvalidBitstream, match="ends"):
            read(data)

    @pytest.mark.parametrize("read", READERS)
    def test_the_work_of_a_product(self, read: Any) -> None:
        data = stream_with(weight())
        read(data, limits=DecodeLimits(max_product_operations=48))
        with pytest.raises(LimitExceeded, match="max_product_operations"):
            read(data, limits=DecodeLimits(max_product_operations=47))

    @pytest.mark.parametrize("read", READERS)
    def test_the_work_of_all_products(self, read: Any) -> None:
        """A shared factor is multiplied for each of its weights, however small they are."""
        arrays = {"v": np.zeros((8, 8), np.float32)}
        arrays |= {f"u{i}": np.zeros((1, 8), np.float32) for i in range(5)}
        entries = {
            f"w{i}": {"form": "joint_right", "shape": [8, 1], "factors": [f"u{i}", "v"]}
            for i in range(5)
        }
        data = stream_with({"factorizations": entries}, arrays)
        each = {"max_product_operations": 64}
        read(data, limits=DecodeLimits(**each, max_all_product_operations=5 * 64))
        with pytest.raises(LimitExceeded, match="max_all_product_operations"):
            read(data, limits=DecodeLimits(**each, max_all_product_operations=5 * 64 - 1))

    @pytest.mark.parametrize("read", READERS)
    def test_the_work_of_blocks(self, read: Any) -> None:
        weights = {name: nnr_factors((4, 2), (2, 6)) for name in "ab"}
        dense = {name: weight.to_dense() for name, weight in weights.items()}
        data = nnr_codec.encode(dense, factorizations=weights).data
        read(data, limits=DecodeLimits(max_product_operations=48, max_all_product_operations=96))
        with pytest.raises(LimitExceeded, match="max_product_operations"):
            read(data, limits=DecodeLimits(max_product_operations=47))
        with pytest.raises(LimitExceeded, match="max_all_product_operations"):
            read(data, limits=DecodeLimits(max_all_product_operations=95))

    def test_ranks_beyond_the_weight(self) -> None:
        """A core that is larger than its weight would make larger intermediates."""
        arrays = {
            "core": np.zeros((1, 4000, 1), np.float32),
            "t": np.zeros((4000, 1), np.float32),
            "s": np.zeros((1, 4000), np.float32),
        }
        entry = {"form": "tucker2", "shape": [4000, 1, 1], "factors": ["core", "t", "s"]}
        with pytest.raises(InvalidBitstream, match="ranks"):
            nnr_codec.decode(stream_with({"factorizations": {"w": entry}}, arrays))

    def test_memory_of_a_product(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from nnr_codec.factorization.forms import LowRank

        def fail(self: Any) -> Any:
            raise MemoryError

        monkeypatch.setattr(LowRank, "to_dense", fail)
        with pytest.raises(LimitExceeded, match="memory"):
            nnr_codec.decode(stream_with(weight()))
