"""Exact coding for tests: encoding with a check of every bit that comes back."""

from __future__ import annotations

from typing import Any

import numpy as np

import nnr_codec
from nnr_codec import EncodeOptions

LOSSLESS = EncodeOptions(lossless=True)
FLOATS = [
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
]
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
RNG = np.random.default_rng


def kinds(result: nnr_codec.EncodeResult) -> dict[str, str]:
    return {tensor.name: tensor.kind for tensor in result.report.tensors}


def assert_same(found: Any, model: dict[str, np.ndarray]) -> None:
    assert list(found) == list(model)
    for name, values in model.items():
        tensor = found[name]
        assert (tensor.dtype, tensor.shape) == (values.dtype, values.shape), name
        assert tensor.tobytes() == values.tobytes(), name


def exactly(model: dict[str, np.ndarray], options: EncodeOptions = LOSSLESS) -> Any:
    """Encode, check the bits of what comes back by all ways, and return the result."""
    result = nnr_codec.encode(model, options=options)
    assert result.data is not None
    assert_same(nnr_codec.decode(result.data), model)
    with nnr_codec.open(result.data) as stream:
        assert_same(stream, model)
        assert [t.name for t in stream.info().tensors] == [n for n in model if model[n].size]
        for row, told in zip(stream.info().tensors, result.report.tensors, strict=True):
            assert (row.bytes, row.data_format) == (told.bytes, told.dtype)
    return result
