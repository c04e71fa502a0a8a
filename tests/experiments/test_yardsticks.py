"""Yardsticks of the entropy coder: entropies that are known, and an ANS stream that decodes."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("zstandard")
pytest.importorskip("constriction")

from nnr_codec import EncodeOptions, encode
from nnr_codec.bitstream import DataUnit, parse_units
from nnr_codec.experiments.measures.yardsticks import (
    Histogram,
    _levels,
    ans_coder,
    ans_model,
    yardsticks,
)

RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(0, 0.1, (64, 300)).astype(np.float32)


def counted(integers: np.ndarray) -> Histogram:
    values, counts = np.unique(integers, return_counts=True)
    return Histogram(values.astype(np.int64), counts.astype(np.int64))


@pytest.mark.parametrize(
    ("integers", "bits"),
    [([0, 0, 0, 0], 0.0), ([1, 2, 3, 4] * 8, 64.0), ([0, 0, 0, 7], 8 - 3 * math.log2(3))],
)
def test_entropies(integers: list[int], bits: float) -> None:
    assert counted(np.array(integers)).bits == pytest.approx(bits)


@pytest.mark.parametrize("dq", [True, False])
def test_levels_are_the_quantizer_s_integers(dq: bool) -> None:
    options = EncodeOptions(qp=-20, dq=dq, codebook=False)
    data = encode({"w": WEIGHTS}, options=options).data or b""
    units = [parsed for parsed in parse_units(data) if isinstance(parsed.record, DataUnit)]
    (levels,) = (found for parsed in units for found in _levels(parsed, parsed.record))
    step = 2.0**-5 * (2 if dq else 1)
    error = np.abs(levels * step - WEIGHTS.reshape(-1))
    assert error.max() <= (1.5 if dq else 0.51) * step  # doubled by mistake it would be far more
    assert not dq or (np.abs(levels) % 2 == 1).any()  # not the doubled ones, less their parity


def test_bytes_are_near_those_of_the_codec() -> None:
    data = encode({"w": WEIGHTS}, options=EncodeOptions(qp=-26, dq=False)).data or b""
    found = yardsticks(data)
    assert found["payload_bytes"] < len(data)
    assert found["entropy_bytes"] <= found["ans_bytes"]
    for name in ("entropy_bytes", "ans_bytes"):
        assert found[name] == pytest.approx(found["payload_bytes"], rel=0.03)


def test_exact_tensors_count_as_well() -> None:
    data = encode({"w": WEIGHTS}, options=EncodeOptions(lossless=True)).data or b""
    found = yardsticks(data)
    assert 0.8 < found["ans_bytes"] / WEIGHTS.nbytes <= 1.01
    # Hardly any two mantissas are the same: without the table that says nothing but which is where.
    # Exponents are coded by themselves.
    mantissas = WEIGHTS.size * math.log2(WEIGHTS.size)
    exponents = counted((WEIGHTS.view(np.uint32) >> 23) & 0xFF).bits
    assert found["entropy_bytes"] == pytest.approx((mantissas + exponents) / 8, 0.01)


def test_what_ans_wrote_decodes_from_the_tables_alone() -> None:
    tensors = [RNG.geometric(p, 3000).astype(np.int32) - 40 for p in (0.5, 0.05)]
    coded = [(integers, counted(integers)) for integers in tensors]
    coder = ans_coder(coded)
    for integers, histogram in coded:
        found = histogram.values[coder.decode(ans_model(histogram), integers.size)]
        assert np.array_equal(found, integers)
    ideal = sum(histogram.bits for _, histogram in coded) / 8
    assert coder.get_compressed().nbytes <= 8  # all is decoded
    assert ans_coder(coded).get_compressed().nbytes == pytest.approx(ideal, rel=0.01)


def test_table_bytes_say_enough() -> None:
    # 256 values with counts that have no pattern: no table of them can be much smaller.
    counts = RNG.integers(1, 2**14, 256)
    histogram = Histogram(np.arange(256, dtype=np.int64), counts.astype(np.int64))
    assert histogram.table_bytes() >= 256 * 14 / 8 * 0.9
    assert histogram.fixed_width_bytes(1000) == pytest.approx(1000, abs=3)
