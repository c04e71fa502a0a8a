"""Tensors that were quantized, rounded or packed already: exact, and small, by themselves."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from exact_support import FLOATS, INTEGERS, LOSSLESS, RNG, exactly, kinds

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.factorization.words import words_of
from nnr_codec.model import dtype_of


def fake_quantized(bits: int, groups: str, scale_dtype: Any, plus_zero: bool) -> np.ndarray:
    """Return weights as people have them who quantize, and scale back, by themselves."""
    weights = RNG(bits).normal(0, 0.05, (48, 64)).astype(np.float32)
    shape = {"tensor": (1, -1), "rows": (48, -1), "groups": (-1, 32), "columns": (48, 64)}[groups]
    parts = weights.T if groups == "columns" else weights.reshape(shape)
    most = 2 ** (bits - 1) - 1
    scales = (np.abs(parts).max(1, keepdims=True) / most).astype(scale_dtype).astype(np.float32)
    levels = np.clip(np.rint(parts / scales), -most, most) + (0 if plus_zero else -0.0)
    made = (levels * scales).astype(np.float32)
    return np.ascontiguousarray(made.T if groups == "columns" else made.reshape(48, 64))


@pytest.mark.parametrize("plus_zero", [True, False])
@pytest.mark.parametrize("scale_dtype", [np.float32, np.float16])
@pytest.mark.parametrize("groups", ["tensor", "rows", "columns", "groups"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_that_are_quantized_already(
    bits: int, groups: str, scale_dtype: Any, plus_zero: bool
) -> None:
    values = fake_quantized(bits, groups, scale_dtype, plus_zero)
    result = exactly({"w": values})
    (row,) = result.report.tensors
    if groups != "tensor":
        assert row.kind == "groups"
    scales = {"tensor": 1, "rows": 48, "columns": 64, "groups": 96}[groups]
    scale_bytes = 1.1 * scales * np.dtype(scale_dtype).itemsize
    assert row.bytes < values.size * bits / 8 * 1.08 + scale_bytes + 150


@pytest.mark.parametrize("shape", [(40, 8, 3, 3), (40, 72), (2, 3, 480)])
def test_channels_of_other_shapes(shape: tuple[int, ...]) -> None:
    weights = RNG(0).normal(0, 1, shape).astype(np.float32)
    axes = tuple(range(1, len(shape)))
    scales = (np.abs(weights).max(axes, keepdims=True) / 127).astype(np.float32)
    result = exactly({"w": np.rint(weights / scales) * scales})
    assert kinds(result) == {"w": "groups"}


def test_a_group_of_zeros() -> None:
    values = fake_quantized(4, "rows", np.float32, True)
    values[7] = 0
    assert kinds(exactly({"w": values})) == {"w": "groups"}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_groups_of_narrower_types(dtype: str) -> None:
    values = fake_quantized(4, "groups", np.float16, True).astype(dtype)
    assert kinds(exactly({"w": values})) == {"w": "groups"}


@pytest.mark.parametrize(
    ("dtype", "scale", "most"),
    [
        ("bfloat16", 0.05, 0.668),
        ("float16", 0.05, 0.855),
        ("float32", 0.05, 0.902),
        ("float8_e4m3fn", 100, 0.83),
    ],
)
def test_ordinary_weights_take_about_their_entropy(dtype: str, scale: float, most: float) -> None:
    values = RNG(1).normal(0, scale, (256, 256)).astype(dtype_of(dtype))
    words, counts = np.unique(words_of(values), return_counts=True)
    entropy = -(counts * np.log2(counts / values.size)).sum() / 8
    result = exactly({"w": values})
    assert len(result.data) < most * values.nbytes
    if words.size < 2**12:  # else the sample does not tell the entropy
        assert len(result.data) < 1.02 * entropy + 300


@pytest.mark.parametrize("dtype", ["int32", "uint32", "uint8", "int16"])
def test_packed_weights_are_unpacked(dtype: str) -> None:
    count = 2 * np.dtype(dtype).itemsize
    levels = np.clip(np.rint(RNG(2).normal(8, 1.5, (64, 48, count))), 0, 15).astype(np.uint32)
    words = (levels << (4 * np.arange(count, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    values = words.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    result = exactly({"w": values})
    assert kinds(result) == {"w": "fields"}
    assert result.report.bytes < 0.75 * values.nbytes
    with nnr_codec.open(result.data) as stream:
        (row,) = stream.info().tensors
    assert (row.shape, row.original_bytes) == (values.shape, values.nbytes)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_what_is_incompressible_hardly_grows(dtype: str) -> None:
    raw = RNG(3).bytes(32768)
    values = np.frombuffer(raw, f"u{dtype_of(dtype).itemsize}").view(dtype_of(dtype))
    result = exactly({"w": values.reshape(64, -1)})
    assert len(result.data) <= 1.011 * len(raw) + 300


@pytest.mark.parametrize("shape", [(), (1,), (3,), (8,), (16,), (1, 1), (2, 4), (4, 6)])
@pytest.mark.parametrize("scale", [1e-4, 0.01, 1, 30, 1000])
def test_few_values_take_no_more_bytes_than_exactly(shape: tuple[int, ...], scale: float) -> None:
    for dtype in ("float16", "float32"):
        model = {"w": np.asarray(scale * RNG(1).normal(size=shape)).astype(dtype)}
        exact = len(nnr_codec.encode(model, options=LOSSLESS).data or b"")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nnr_codec.NnrWarning)  # of a finer qp
            for options in (EncodeOptions(), EncodeOptions.preset("best"), EncodeOptions(dq=False)):
                assert len(nnr_codec.encode(model, options=options).data or b"") <= exact


@pytest.mark.parametrize("axis", range(4))
def test_scales_along_any_axis_need_no_option(axis: int) -> None:
    shape = [16, 12, 9, 8]
    scales = [1] * 4
    scales[axis] = shape[axis]
    rng = RNG(2)
    values = rng.integers(-127, 128, shape) * np.abs(rng.normal(0.01, 0.003, scales)).astype("f4")
    result = nnr_codec.encode({"w": values.astype("f4")})
    assert kinds(result) == {"w": "groups"}
    assert np.array_equal(nnr_codec.decode(result.data)["w"], values.astype("f4"))


def test_groups_of_sixteen_need_no_option() -> None:
    rng = RNG(3)
    scales = np.abs(rng.normal(0.01, 0.003, (64 * 16, 1))).astype("f4")
    values = (rng.integers(-127, 128, (64 * 16, 16)) * scales).astype("f4").reshape(64, 256)
    assert kinds(nnr_codec.encode({"w": values})) == {"w": "groups"}


def test_norms_of_a_shorter_type_need_no_option() -> None:
    norm = RNG(4).normal(1, 0.1, 4096).astype(ml_dtypes.bfloat16).astype(np.float32)
    result = nnr_codec.encode({"norm": norm})
    assert np.array_equal(nnr_codec.decode(result.data)["norm"], norm)
    assert len(result.data or b"") < 0.4 * norm.nbytes


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("float8_e4m3fn", 32),
        ("float8_e4m3fn", 64),
        ("float8_e5m2", 8192),
        ("float16", 65504 / 7),  # the nearest scale would make the greatest value infinite
    ],
)
def test_minus_zero_beside_the_greatest_values(dtype: str, scale: float) -> None:
    levels = np.random.default_rng(0).integers(-7, 8, (64, 256))
    levels[0] = 7
    if scale == 32:
        levels[:, 1] = 14
    values = (levels * scale).astype(np.float32).astype(dtype_of(dtype))
    values[1, :3] = -0.0
    exactly({"w": values})
