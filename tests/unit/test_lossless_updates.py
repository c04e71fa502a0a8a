"""Updates that bring back every bit: their sizes, and sums that wrap around."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from updates_support import assert_same, encoded

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.decoding.updates.sums import summed
from nnr_codec.encoding.updates.difference import word_difference

LOSSLESS = EncodeOptions(lossless=True)


def sparse(values: np.ndarray, bit: int) -> np.ndarray:
    """One percent of the values with one bit changed."""
    rng = np.random.default_rng(2)
    words = values.view(np.uint16).copy()
    some = rng.random(words.shape) < 0.01
    words[some] ^= np.uint16(1 << bit)
    return words.view(values.dtype)


@pytest.mark.parametrize("bit", [0, 1, 3, 6])
def test_a_sparse_update_is_small(bit: int) -> None:
    rng = np.random.default_rng(0)
    old = rng.normal(0, 0.05, (256, 256)).astype(ml_dtypes.bfloat16)
    base = encoded({"w": old}, LOSSLESS)
    new = sparse(old, bit)
    update = encoded({"w": new}, LOSSLESS, base=[base])
    assert_same(nnr_codec.decode(update, base=[base]), {"w": new})
    assert len(update) < 0.012 * new.nbytes


def test_bits_or_numbers_whichever_is_smaller() -> None:
    rng = np.random.default_rng(0)
    old = rng.integers(0, 2**32, (64, 64), dtype=np.uint32)
    base = encoded({"n": old}, LOSSLESS)
    for changed, is_xor in ((old ^ np.uint32(3), True), (old + np.uint32(3), False)):
        some = rng.random(old.shape) < 0.5
        update = encoded({"n": np.where(some, changed, old)}, base=[base])
        with nnr_codec.open(update, base=[base]) as stream:
            entry = stream.units()[2].context.model_map.base
        assert (entry.xor == ("n",)) == is_xor


def test_over_a_lossy_base_the_bits_come_back() -> None:
    rng = np.random.default_rng(0)
    old = rng.normal(0, 0.05, (64, 64)).astype(np.float32)
    old[0, :4] = [np.nan, np.inf, -0.0, 1e-45]
    base = encoded({"w": old}, EncodeOptions(qp=-38))
    update = encoded({"w": old}, LOSSLESS, base=[base])
    assert_same(nnr_codec.decode(update, base=[base]), {"w": old})


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64, np.uint64, np.bool_])
def test_sums_of_words_wrap_around(dtype: type) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (2, 50)) if dtype is np.bool_ else rng.integers(0, 256, (2, 50))
    new, base = bits.astype(np.uint8).astype(dtype)
    if dtype is not np.bool_:
        base[:3] = np.array([0, np.iinfo(dtype).max, np.iinfo(dtype).min], dtype)
        new[:3] = base[:3][::-1] if np.dtype(dtype).itemsize < 8 else base[:3]
    for xor in (False, True):
        integers = word_difference(new, base, xor)
        assert integers is not None
        assert np.array_equal(summed(base, integers, xor), new)


def test_differences_of_more_than_32_bits_are_coded_whole() -> None:
    base = np.array([0, 2**62, -(2**62)])
    assert word_difference(base[::-1].copy(), base, xor=False) is None
    stream = encoded({"n": base}, LOSSLESS)
    new = {"n": base[::-1].copy()}
    assert_same(nnr_codec.decode(encoded(new, base=[stream]), base=[stream]), new)


def test_float_sums_are_rounded_once() -> None:
    one = np.array([1.0], ml_dtypes.bfloat16)
    tiny = np.array([2.0**-8], np.float32)
    assert summed(one, tiny)[0] == 1.0  # a tie, to even
    assert summed(one, tiny * np.float32(1.01))[0] == 1 + 2.0**-7
    wide = np.array([1.0])
    assert summed(wide, np.array([2.0**-40], np.float32))[0] == 1 + 2.0**-40
    largest = np.array([65504.0], np.float16)
    assert np.isinf(summed(largest, np.array([100.0], np.float32))[0])
