"""Small streams of all kinds, cut at every byte, and with every bit flipped.

With NNR_FUZZ=all every byte has every value, and all ways of reading are tried: some minutes.
"""

from __future__ import annotations

import os

import pytest
from peak_memory import Result, Work, measured
from small_streams import small_streams

import nnr_codec
from nnr_codec import DecodeLimits

LIMITS = DecodeLimits(max_elements_per_tensor=2**16, max_elements=2**17)
ALLOWED_MEMORY = 16 * 2**20
"""What LIMITS may cost, at most 24 bytes for an element, a few times over; and fragments."""

MORE = os.environ.get("NNR_FUZZ") == "all"
NAMES = list(small_streams())


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """All streams are damaged in one process, which takes a second to start."""
    how = ("bytes", "all") if MORE else ("bits", "decode")
    works = [
        Work(name, [stream.data], stream.parents, *how) for name, stream in small_streams().items()
    ]
    return measured(works, LIMITS, timeout=36_000 if MORE else 300)


@pytest.mark.parametrize("name", NAMES)
def test_streams_are_small_and_sound(name: str) -> None:
    stream = small_streams()[name]
    assert len(stream.data) < 256
    assert nnr_codec.decode(stream.data, parents=stream.parents, limits=LIMITS)


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_and_every_bit(name: str, results: dict[str, Result]) -> None:
    size, result = len(small_streams()[name].data), results[name]
    assert not result.failures, result.failures[0]
    assert result.outcomes.total() == size + (255 if MORE else 8) * size
    assert result.outcomes["InvalidBitstream"]
    assert result.outcomes["TruncatedBitstream"]
    assert result.peak < ALLOWED_MEMORY


def test_a_parent_that_is_damaged() -> None:
    """Of an update the parent's every bit."""
    update = small_streams()["update"]
    (parent,) = update.parents
    for position in range(8 * len(parent)):
        damaged = bytearray(parent)
        damaged[position // 8] ^= 1 << position % 8
        try:
            nnr_codec.decode(update.data, parents=[bytes(damaged)], limits=LIMITS)
        except nnr_codec.BitstreamError:
            continue
