"""Exact coding: every bit of every tensor comes back, by the smallest representation."""

from __future__ import annotations

import io
import json
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_support import FLOATS, INTEGERS, LOSSLESS, RNG, assert_same, exactly, kinds
from hypothesis import given, settings
from hypothesis import strategies as st

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.bitstream import Context, DataUnit, PayloadType, Topology, read_units, write_record
from nnr_codec.bitstream.qp import step_size
from nnr_codec.decoding import finishing
from nnr_codec.encoding.unit_encoder import encode_raw_floats
from nnr_codec.factorization.grid_meanings import scaled
from nnr_codec.factorization.words import is_rotated, signed_from_words, words_from_signed, words_of
from nnr_codec.model import dtype_of
from nnr_codec.quantize.grids import exact_step, scale_of

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (40, 30), (0,), (2, 0)]


def with_map(**data: Any) -> bytes:
    """Return a topology unit with a model map of these keys."""
    text = json.dumps({"nnr_model_map": 1, **data}, separators=(",", ":"))
    return write_record(Topology(topology_data=text))


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    """Any bits of any type; or few distinct ones, or a grid, with extremes here and there."""
    shape = draw(st.sampled_from(SHAPES))
    rng = RNG(draw(st.integers(0, 2**32)))
    name = draw(st.sampled_from([*FLOATS, *INTEGERS, "bool"]))
    if name == "bool":
        return np.asarray(rng.integers(0, 2, shape)).astype(bool)
    dtype = dtype_of(name)
    size = int(np.prod(shape))
    words = np.frombuffer(rng.bytes(size * dtype.itemsize), f"u{dtype.itemsize}").copy()
    kind = draw(st.sampled_from(["words", "clusters", "grid", "normal", "narrow"]))
    with np.errstate(all="ignore"):
        if kind == "clusters" and size:
            words = words[rng.integers(0, min(draw(st.integers(1, 9)), size), size)]
        elif kind == "grid":
            scale = draw(st.sampled_from([0.25, 0.0123, 3e-5, 1.75, 2.0**-70]))
            words = words_of((rng.integers(-20, 20, size) * np.float32(scale)).astype(dtype))
        elif kind == "normal":
            words = words_of(rng.normal(0, 0.1, size).astype(dtype))
        elif kind == "narrow" and name == "float64":
            words = words_of(words.astype(np.uint32).view(np.float32).astype(dtype))
    special = draw(st.sampled_from([[], [0], [1 << (8 * dtype.itemsize - 1)], [2**64 - 1, 1]]))
    for place, word in enumerate(special[:size]):
        words[place] = word & ((1 << 8 * dtype.itemsize) - 1)
    return words.view(dtype).reshape(shape)


@settings(max_examples=300, deadline=None)
@given(st.lists(tensors(), max_size=4), st.sampled_from(["lossless", "exclude"]), st.booleans())
def test_every_bit_comes_back(values: list[np.ndarray], how: str, profile: bool) -> None:
    options = {"lossless": {"lossless": True}, "exclude": {"exclude": ("*",)}}[how]
    model = {f"t{i}": tensor for i, tensor in enumerate(values)}
    exactly(model, EncodeOptions(**options, profile=int(profile)))  # type: ignore[arg-type]


def special_model() -> dict[str, np.ndarray]:
    """One tensor for each representation."""
    rng = RNG(1)
    normal = rng.normal(0, 0.05, (60, 50))
    clusters = rng.normal(0, 1, 16).astype(np.float32)
    nibbles = np.clip(np.rint(RNG(2).normal(8, 1, (2, 60, 50))), 0, 15)
    return {
        "step": (rng.integers(-7, 8, (60, 50)) * 0.375).astype(np.float32),
        "grid": scaled(rng.integers(-7, 8, (60, 50), np.int32), 0.0123, np.dtype(np.float32)),
        "table": clusters[np.minimum(rng.geometric(0.2, (60, 50)), 15)],
        "bits": np.where(rng.random((60, 50)) < 0.9, 0, normal).astype(np.float16),
        "mantissas": normal.astype(np.float16),
        "groups": (np.rint(normal * 60) * rng.uniform(1, 2, (60, 1)).astype("f4")).astype("f4"),
        "fields": (nibbles[0] + 16 * nibbles[1]).astype(np.uint8),
        "halves": normal,
        "wide": rng.integers(-(2**40), 2**40, (9, 5)),
        "unsigned": rng.integers(2**31, 2**32, 9).astype(np.uint32),
        "raw": np.array([1.1, np.nan, -0.0, np.inf], np.float32),
        "scalar": np.array(2**63 + 5, np.uint64),
    }


EXPECTED = {
    **{name: name for name in ("step", "grid", "table", "bits", "halves", "raw")},
    **{name: name for name in ("mantissas", "groups", "fields")},
    **{"wide": "halves", "unsigned": "bits", "scalar": "halves"},
}


def test_each_representation_is_chosen_and_shown() -> None:
    result = exactly(special_model())
    assert kinds(result) == EXPECTED
    with nnr_codec.open(result.data) as stream:
        shown = {tensor.name: tensor.kind for tensor in stream.info().tensors}
    assert shown == {**EXPECTED, "step": "float"}


def test_files_pipes_and_threads(tmp_path: Path) -> None:
    model = special_model()
    path = tmp_path / "m.nnr"
    nnr_codec.encode(model, path, LOSSLESS)
    assert_same(nnr_codec.load_file(path), model)
    with ThreadPoolExecutor(2) as executor:
        assert nnr_codec.encode(model, options=LOSSLESS, executor=executor).data == (
            path.read_bytes()
        )
        assert_same(nnr_codec.decode(path, executor=executor), model)
    reader, writer = os.pipe()
    sender = threading.Thread(target=lambda: os.fdopen(writer, "wb").write(path.read_bytes()))
    sender.start()
    with os.fdopen(reader, "rb") as pipe:
        assert_same(nnr_codec.decode(pipe), model)
    sender.join()


class Growing(io.RawIOBase):
    """A pipe that notes how far it was read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = self.data[self.place : self.place + max(size, 0)]
        self.place += len(found)
        return found


def test_a_pipe_gives_joined_tensors_at_once() -> None:
    """The halves come before anything behind them is there."""
    model = {"a": RNG(0).normal(0, 1, 50), "b": RNG(1).normal(0, 1, (900, 900))}
    data = nnr_codec.encode(model, options=LOSSLESS).data
    assert data is not None
    units = list(read_units(data))
    source = Growing(data)
    decoder = nnr_codec.decoder.StreamDecoder()
    first = next(iter(decoder.tensors(source)))  # type: ignore[arg-type]
    assert first.values.tobytes() == model["a"].tobytes()
    assert source.place < len(data) - units[-1].size


@pytest.mark.parametrize("pattern", ["halves", "table", "scalar"])
def test_some_tensors_only(pattern: str) -> None:
    model = special_model()
    data = nnr_codec.encode(model, options=LOSSLESS).data
    assert_same(nnr_codec.decode(data, only=pattern), {pattern: model[pattern]})
    assert nnr_codec.decode(data, only="*.low") == {}


def test_names_of_parts_do_not_clash() -> None:
    """Names that a part would have are taken by tensors of the model."""
    wide = np.array([2**40, -3])
    exactly({"w.low": np.ones(3), "w": wide, "w.low1": np.ones(2), "w.low.low": wide})
    exactly({"ä" * 2048: wide, "ä" * 2047: wide})


def test_ties_to_joined_tensors() -> None:
    first = nnr_codec.model.Parameter.from_array("a", np.array([2**40, 1]))
    tied = nnr_codec.model.Parameter("b", first.shape, first.dtype, first.load, "a")
    data = nnr_codec.encode(nnr_codec.model.Model([first, tied])).data
    for found in (nnr_codec.decode(data), nnr_codec.open(data)):
        assert_same(found, {"a": first.read(), "b": first.read()})
    assert list(nnr_codec.decode(data, only="b")) == ["b"]


def test_updates_with_parents() -> None:
    model = special_model()
    first = nnr_codec.encode(model, options=LOSSLESS).data
    changed = {name: values.copy() for name, values in model.items()}
    changed["table"][:] = changed["table"][::-1]
    changed["halves"][0] += 1
    assert first is not None
    second = nnr_codec.encode(changed, options=LOSSLESS, parents=[first]).data
    assert second is not None
    assert_same(nnr_codec.decode(second, parents=[first]), changed)
    with nnr_codec.open(second, parents=[first]) as stream:
        assert_same(stream, changed)
    third = nnr_codec.encode(model, options=LOSSLESS, parents=[first, second]).data
    assert_same(nnr_codec.decode(third, parents=[first, second]), model)


def test_wide_integers_need_no_option() -> None:
    extremes = np.array([-(2**63), 2**63 - 1, 0, -1])
    model = {"i": extremes, "u": extremes.view(np.uint64), "w": np.full(3, 2**32 - 1, np.uint32)}
    exactly(model, EncodeOptions())


def test_other_decoders_see_ordinary_tensors() -> None:
    """Without the map the stream holds integers, under the tensor's name and its part's."""
    data = nnr_codec.encode({"w": np.array([2**40 + 5, -1])}).data
    assert data is not None
    units = [bytes(unit.data) for unit in read_units(data)]
    units[2] = write_record(Topology())
    found = nnr_codec.decode(b"".join(units))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "w.low": [5, -1],
        "w": [256, -1],
    }


@pytest.mark.parametrize(
    ("dtype", "most"), [("float16", 15), ("bfloat16", 12), ("float8_e4m3fn", 8), ("float32", 28)]
)
def test_ordinary_floats_take_less_than_their_bits(dtype: str, most: float) -> None:
    values = RNG(0).normal(0, 0.05, (200, 300)).astype(dtype_of(dtype))
    assert exactly({"w": values}).report.bits_per_weight < most


def test_a_table_takes_about_the_entropy() -> None:
    rng = RNG(0)
    table = rng.normal(0, 1, 64).astype(np.float32)
    table[0] = -0.0
    values = table[np.minimum(rng.geometric(0.1, (300, 200)) - 1, 63)]
    counts = np.unique(values.view(np.uint32), return_counts=True)[1]
    entropy = -(counts * np.log2(counts / values.size)).sum() / 8
    assert len(exactly({"w": values}).data) < 1.02 * entropy + 450


def test_what_no_step_can_say_travels_exactly_with_a_warning() -> None:
    model = {"w": np.array([[np.nan, 1], [np.inf, 2]], np.float32)}
    with pytest.warns(nnr_codec.NnrWarning, match="'w' holds NaN: it is coded exactly"):
        exactly(model, EncodeOptions())
    exactly(model)
    exactly(model, EncodeOptions(exclude=("w",)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_signalling_nans_warn_of_nothing(dtype: str) -> None:
    """numpy warns where it converts one: "invalid value encountered in cast"."""
    kind = dtype_of(dtype)
    quiet = words_of(np.array([np.inf], kind))
    signalling = np.repeat(quiet, 60) + np.array([1, 3] * 30, quiet.dtype)
    ordinary = words_of(RNG(0).normal(0, 1, 60).astype(kind))
    model = {
        "alone": signalling.view(kind),
        "among": np.concatenate([signalling, ordinary]).view(kind),
    }
    exactly(model)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_signalling_nans_of_another_type_warn_of_nothing(dtype: str) -> None:
    """A map may want another type than that of a unit of raw floats."""
    values = np.array([0x7F800001, 0xFFBFFFFF, 0x3F800000] * 300, np.uint32).view(np.float32)
    values[2::3] = RNG(0).normal(0, 1, 300)
    result = nnr_codec.encode({"w": values}, options=LOSSLESS)
    units = [bytes(unit.data) for unit in read_units(result.data or b"")]
    parameters = DataUnit(PayloadType.RAW_FLOAT, ["w"], tensor_dimensions=[values.size])
    units[2:] = [
        with_map(tensors={"w": {"dtype": dtype}}),
        encode_raw_floats(parameters, values, Context()),
    ]
    found = nnr_codec.decode(b"".join(units))["w"]
    assert found.dtype == dtype
    assert [math.isnan(value) for value in found.tolist()] == [True, True, False] * 300


def test_memory_that_runs_out_while_parts_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    data = nnr_codec.encode({"w": np.full(10, 2**40)}).data or b""

    def apply_rule(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(finishing, "apply_rule", apply_rule)
    with pytest.raises(nnr_codec.LimitExceeded, match="memory of this machine") as caught:
        nnr_codec.decode(data)
    assert caught.value.value == 10
    with nnr_codec.open(data) as stream, pytest.raises(nnr_codec.LimitExceeded):
        stream["w"]


class TestExactSteps:
    def test_a_quantized_tensor_on_a_step_is_exact_and_not_larger(self) -> None:
        values = (RNG(0).integers(-3, 4, (80, 70)) * 2.0**-5).astype(np.float32)
        result = nnr_codec.encode({"w": values})
        assert kinds(result) == {"w": "step"}
        assert nnr_codec.decode(result.data)["w"].tobytes() == values.tobytes()
        plain = nnr_codec.encode({"w": values * np.float32(1 + 2**-20)})
        assert len(result.data or b"") <= len(plain.data or b"")

    def test_an_ordinary_tensor_is_not(self) -> None:
        values = RNG(0).normal(0, 0.05, (80, 70)).astype(np.float32)
        assert exact_step(values.reshape(-1), 2) is None
        assert scale_of(values.reshape(-1)) is None

    @pytest.mark.parametrize("step", [0.5, 0.75, 1.25 * 2**-7, 7 * 2.0**-20, 11 * 2.0**-9])
    def test_steps(self, step: float) -> None:
        assert exact_step(np.zeros(9, np.float32), 2) is not None
        values = (RNG(0).integers(-90, 90, 5000) * step).astype(np.float32)
        found = exact_step(values, 2)
        assert found is not None
        assert (found[1] * step_size(found[0], 2)).astype(np.float32).tobytes() == values.tobytes()

    @pytest.mark.filterwarnings("error")
    def test_few_small_values_between_zeros_on_no_grid(self) -> None:
        """A sample that misses the smallest values gives a divisor that is too large for them."""
        values = np.zeros(5000)
        values[1:200:40] = [0.3, 0.1, 7e-9, 0.2, 1e-3]
        values[np.arange(1024) * 5000 // 1024] = 0
        values[0] = 0.25
        assert scale_of(values) is None
        exactly({"w": values})

    @pytest.mark.parametrize("values", [[0, -0.0], [1, -0.0], [np.nan, 1], [2.0**-100, 1]])
    def test_none(self, values: list[float]) -> None:
        assert exact_step(np.array(values, np.float32), 2) is None


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]), st.booleans(), st.data())
def test_words_and_integers(bias: int, itemsize: int, rotated: bool, data: st.DataObject) -> None:
    words = np.frombuffer(data.draw(st.binary(min_size=16, max_size=64)), np.uint8)
    words = words[: words.size // itemsize * itemsize].view(f"u{itemsize}")
    bias %= 1 << 8 * itemsize
    integers = signed_from_words(words, bias, rotated)
    assert (words_from_signed(integers, bias, rotated, itemsize) == words).all()
    assert signed_from_words(np.zeros(1, words.dtype), bias, True)[0] == 0


def test_zero_is_the_integer_zero() -> None:
    assert is_rotated(dtype_of("bfloat16"))
    assert not is_rotated(dtype_of("float8_e8m0fnu"))
    assert signed_from_words(np.array([0x8000], np.uint16), 0, True)[0] == 1  # -0.0


def stream_with(tensors: dict[str, Any], extras: list[Any] | None = None) -> bytes:
    """A stream of p (INT, 2), i (INT, 2), w (FLOAT, 2 x 2), q (INT, 2 x 2) with this map, and of
    mantissas m, and bits of scales h, f, big."""
    model = {
        "p": np.array([1, 300], np.int32),
        "m": np.array([1 << 21, ~(3 << 21)], np.int32),
        "h": np.array([0x3C00, 0x400], np.int32),
        "f": np.array([0.25], np.float32).view(np.int32),
        "big": np.array([300.0], np.float32).view(np.int32),
        "i": np.array([1, -2], np.int32),
        "w": np.ones((2, 2), np.float32),
        "q": np.ones((2, 2), np.int32),
        "s": np.ones(2, np.int16),
    }
    units = [bytes(unit.data) for unit in read_units(nnr_codec.encode(model).data or b"")]
    data = {"tensors": tensors, **({"extras": extras} if extras else {})}
    units[2] = with_map(**data)
    return b"".join(units)


def test_maps_by_hand() -> None:
    for entry, expected in (
        ({"dtype": "float32", "scale": 0.5}, [0.5, -1.0]),
        ({"dtype": "float64", "scale": 1}, [1.0, -2.0]),
        ({"dtype": "float64", "scale": 2**127}, [2.0**127, -(2.0**128)]),
        ({"dtype": "float32", "scale": 2.0**126}, [2.0**126, -(2.0**127)]),
        ({"dtype": "uint32", "bits": 7}, [8, 5]),
        ({"dtype": "int64", "low": "p"}, [2**32 + 1, -(2**33) + 300]),
        ({"dtype": "uint16", "table": "p"}, [301, 1]),
        ({"dtype": "float32", "scale": 0.5, "negative_zero": 1}, [-0.0, -1.0]),
        ({"dtype": "float32", "mantissas": "m", "bits": 127}, [2.5, -0.4375]),
        ({"dtype": "float16", "scales": "h", "run": 1, "scale_dtype": "float16"}, [1.0, -4.0]),
        ({"dtype": "float32", "scales": "f", "run": 2}, [0.25, -0.5]),
        ({"dtype": "uint8", "fields": 4, "shape": [1]}, [8 + 1 + 16 * (8 - 2)]),
    ):
        found = nnr_codec.decode(stream_with({"i": entry}))
        assert found["i"].tolist() == expected
        assert found["i"].dtype == entry["dtype"]
        assert [np.signbit(v) for v in found["i"]] == [np.signbit(v) for v in expected]
        parts = {entry.get(key) for key in ("low", "table", "mantissas", "scales")}
        assert not parts & set(found)


HOSTILE: list[tuple[dict[str, Any], list[Any]]] = [
    *(({"i": {"dtype": "float32", "scale": s}}, []) for s in (0, -1, 1e-40, 1e39, True, "1", None)),
    # A whole number that is read as 2^128, and the last binary64 number before that.
    *(({"i": {"dtype": "float64", "scale": s}}, []) for s in (2**128 - 1, 2**128)),
    ({"i": {"dtype": "float32", "scale": math.nextafter(2.0**128, 0)}}, []),
    ({"i": {"dtype": "float32", "scale": 2.0**127}}, []),  # times -2
    ({"i": {"dtype": "float16", "scale": 40000}}, []),
    ({"i": {"dtype": "float8_e4m3fn", "scale": 300}}, []),
    ({"i": {"dtype": "float8_e8m0fnu", "scale": 1}}, []),  # has no -2
    ({"i": {"scale": 0.5}}, []),
    ({"i": {"dtype": "int32", "scale": 0.5}}, []),
    ({"i": {"dtype": "bool", "bits": 0}}, []),
    ({"w": {"dtype": "float32", "scale": 0.5}}, []),
    ({"s": {"dtype": "float32", "scale": 0.5}}, []),
    ({"i": {"dtype": "float32", "scale": 0.5, "bits": 0}}, []),
    *(({"i": {"dtype": "float16", "bits": b}}, []) for b in (-1, 2**16, 0.5, True, "0")),
    *(
        ({"i": {"dtype": "float32", "scale": 0.5, "negative_zero": z}}, [])
        for z in (2**31, -(2**40), 10**30, 0.5, True, "1", None)
    ),
    ({"i": {"dtype": "float32", "negative_zero": 1}}, []),
    ({"i": {"dtype": "float32", "run": 1}}, []),
    ({"i": {"dtype": "float32", "scales": "f"}}, []),
    *(
        ({"i": {"dtype": "float32", "scales": "f", "run": run}}, [])
        for run in (0, -1, 3, 2**31, 2**64, 10**30, 1.0, True)
    ),
    *(({"i": {"dtype": d, "scales": "f", "run": 2}}, []) for d in ("int32", "float8_e8m0fnu")),
    ({"i": {"dtype": "float32", "scales": "f", "run": 2, "scale_dtype": "float64"}}, []),
    ({"i": {"dtype": "float32", "scales": "f", "run": 2, "scale_dtype": "float16"}}, []),  # inf
    ({"i": {"dtype": "float32", "scales": "p", "run": 1}}, []),  # denormal
    ({"i": {"dtype": "float32", "scales": "q", "run": 1}}, []),  # of two dimensions
    ({"i": {"dtype": "float32", "scales": "missing", "run": 1}}, []),
    ({"i": {"dtype": "float8_e4m3fn", "scales": "big", "run": 2}}, []),
    ({"i": {"dtype": "float32", "scales": "f", "run": 2, "scale": 1.0}}, []),
    ({"i": {"dtype": "float32", "mantissas": "m"}}, []),
    *(
        ({"i": {"dtype": "float32", "mantissas": "m", "bits": b}}, [])
        for b in (-1, 0, 1, 255, 256, 2**40, True)
    ),
    ({"i": {"dtype": "float16", "mantissas": "m", "bits": 15}}, []),
    ({"i": {"dtype": "float64", "mantissas": "m", "bits": 1023}}, []),
    ({"i": {"dtype": "int32", "mantissas": "m", "bits": 127}}, []),
    ({"i": {"dtype": "float8_e8m0fnu", "mantissas": "m", "bits": 127}}, []),
    ({"q": {"dtype": "float32", "mantissas": "m", "bits": 127}}, []),  # of another shape
    ({"i": {"dtype": "uint8", "fields": 4}}, []),
    *(({"i": {"dtype": "uint8", "fields": f, "shape": [1]}}, []) for f in (0, 1, 3, 8, -4, True)),
    *(({"i": {"dtype": "uint8", "fields": 4, "shape": s}}, []) for s in ([2], [0], [4])),
    ({"i": {"dtype": "float16", "fields": 4, "shape": [1]}}, []),
    ({"i": {"dtype": "int64", "fields": 4, "shape": [1]}}, []),
    ({"p": {"dtype": "uint8", "fields": 4, "shape": [1]}}, []),  # 300 is no field
    ({"i": {"dtype": "float64", "bits": 0}}, []),
    ({"i": {"dtype": "int64", "table": "p"}}, []),
    ({"i": {"dtype": "int32", "low": "p"}}, []),
    ({"i": {"dtype": "int64", "low": 1}}, []),
    ({"i": {"dtype": "int64", "low": "missing"}}, []),
    ({"i": {"dtype": "int64", "low": "q"}}, []),  # comes later
    ({"i": {"dtype": "int64", "low": "i"}}, []),
    ({"q": {"dtype": "int64", "low": "p"}}, []),  # of another shape
    ({"q": {"dtype": "int64", "low": "w"}}, []),  # floats
    ({"q": {"dtype": "float32", "table": "w"}}, []),
    ({"s": {"dtype": "float32", "table": "q"}}, []),  # of two dimensions
    ({"w": {"dtype": "int64", "low": "p"}}, []),
    ({"i": {"dtype": "int64", "low": "p"}, "q": {"dtype": "float32", "table": "p"}}, []),
    ({"i": {"dtype": "int64", "low": "p"}, "p": {"dtype": "uint32"}}, []),
    ({"i": {"dtype": "int64", "low": "p"}, "p": {"dtype": "int64", "low": "i"}}, []),
    ({"i": {"dtype": "int64", "low": "p"}}, [{"name": "t", "after": "i", "tied_to": "p"}]),
    (
        {"i": {"dtype": "int64", "low": "p"}},
        [{"name": "t", "after": "p", "dtype": "int8", "shape": [0]}],
    ),
    ({"p": {"dtype": "float32", "table": "i"}}, []),
    ({"i": {"dtype": "float8_e5m2", "bits": 0, "shape": [3]}}, []),
    ({"p": {"dtype": "float8_e5m2", "bits": 0}}, []),  # 300 is no byte
    ({"q": {"dtype": "float32", "table": "i", "shape": [9]}}, []),
]


@pytest.mark.parametrize(("tensors", "extras"), HOSTILE)
def test_hostile_maps(tensors: dict[str, Any], extras: list[Any]) -> None:
    data = stream_with(tensors, extras)
    with pytest.raises(nnr_codec.InvalidBitstream):
        nnr_codec.decode(data)
    with pytest.raises(nnr_codec.InvalidBitstream):
        dict(nnr_codec.open(data))


def table_stream(table: list[int], indices: list[int]) -> bytes:
    model = {"t": np.array(table, np.int32), "i": np.array(indices, np.int32)}
    units = [bytes(unit.data) for unit in read_units(nnr_codec.encode(model).data or b"")]
    entry = {"i": {"dtype": "float32", "table": "t"}}
    units[2] = with_map(tensors=entry)
    return b"".join(units)


def test_tables_bound_their_indices() -> None:
    assert nnr_codec.decode(table_stream([0, 5, 7], [2, -3, -1]))["i"].size == 3
    for index in (3, -4, 2**31 - 1, -(2**31)):
        with pytest.raises(nnr_codec.InvalidBitstream, match="outside the table"):
            nnr_codec.decode(table_stream([0, 5, 7], [0, index]))
    with pytest.raises(nnr_codec.InvalidBitstream, match="at most 65536"):
        nnr_codec.decode(table_stream([0] * 65537, [0]))


def test_parts_count_as_elements() -> None:
    data = nnr_codec.encode({"w": np.full(10, 2**40)}).data
    nnr_codec.decode(data, limits=nnr_codec.DecodeLimits(max_elements=20))
    with pytest.raises(nnr_codec.LimitExceeded, match="max_elements"):
        nnr_codec.decode(data, limits=nnr_codec.DecodeLimits(max_elements=19))
