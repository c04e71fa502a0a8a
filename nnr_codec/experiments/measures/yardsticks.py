"""Yardsticks of the entropy coder: what others take for the very integers of a stream.

All three counts are of the tensors' payloads; the units' headers, which any container needs in some
form, are left out of all.

* ``payload_bytes``: what DeepCABAC took.
* ``entropy_bytes``: the zero-order entropy of each tensor's integers by itself. No static coder
  of single integers takes less, and this one is not charged for its tables. Where values hardly
  repeat, as those of fine vectors and of exact tensors do, it is small for that reason alone.
* ``ans_bytes``: constriction's ANS coder, with a static model for each tensor and the tables that
  its decoder needs. A tensor for which that is shorter is counted at a fixed width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...bitstream import DataUnit, ParsedUnit, PayloadType, parse_units
from ...decoding.unit_decoder import decode_data_unit
from ...model import Array
from ...options import DecodeLimits

_ZSTD_LEVEL = 19


@dataclass(frozen=True)
class Histogram:
    """The distinct integers of a tensor, ascending, and how often each occurs; int64."""

    values: Array
    counts: Array

    @property
    def bits(self) -> float:
        """The zero-order entropy of the whole tensor."""
        total = int(self.counts.sum())
        return float(-(self.counts * np.log2(self.counts / total)).sum())

    def table_bytes(self) -> int:
        """Return the bytes of the table: gaps and counts as varints, packed by Zstandard."""
        import zstandard

        gaps = np.diff(self.values, prepend=0)
        numbers = np.concatenate([np.where(gaps < 0, -2 * gaps - 1, 2 * gaps), self.counts])
        text = b"".join(_varint(int(number)) for number in numbers)
        packed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(text)
        return min(len(text), len(packed)) + 1  # which of the two

    def fixed_width_bytes(self, elements: int) -> int:
        """Return the bytes at the width that the range needs, and of its first value and width."""
        width = math.ceil(math.log2(int(self.values[-1] - self.values[0]) + 1))
        return math.ceil(elements * width / 8) + len(_varint(2 * abs(int(self.values[0])))) + 1


def yardsticks(data: bytes) -> dict[str, int]:
    """Return the bytes of the payloads of a stream, as it is and with other entropy coders."""
    payload, raw, bits, fixed = 0, 0, 0.0, 0
    coded: list[tuple[Array, Histogram]] = []
    for parsed in parse_units(data, DecodeLimits()):
        if not isinstance(parsed.record, DataUnit):
            continue
        payload += len(parsed.payload)
        if parsed.record.payload_type == PayloadType.RAW_FLOAT:
            raw += len(parsed.payload)
        for integers in _levels(parsed, parsed.record):
            values, counts = np.unique(integers, return_counts=True)
            histogram = Histogram(values.astype(np.int64), counts.astype(np.int64))
            bits += histogram.bits
            plain = histogram.fixed_width_bytes(integers.size)
            table = histogram.table_bytes()
            if plain <= table + histogram.bits / 8:
                fixed += plain
            else:
                fixed += table
                coded.append((integers, histogram))
    return {
        "payload_bytes": payload,
        "entropy_bytes": raw + math.ceil(bits / 8),
        "ans_bytes": raw + fixed + int(ans_coder(coded).get_compressed().nbytes if coded else 0),
    }


def _levels(parsed: ParsedUnit, record: DataUnit) -> Iterator[Array]:
    """Yield the integers of a unit's tensors as they were coded, before the doubling: int32."""
    for tensor in decode_data_unit(parsed, keep_integers=True):
        if tensor.integers is None:
            continue
        doubled = bool(record.dq_flag) and record.payload_type != PayloadType.INT
        # Dependent quantization makes 2|q| or 2|q| - 1 of |q|.
        magnitudes = (np.abs(tensor.integers) + 1) // 2 if doubled else np.abs(tensor.integers)
        yield (np.sign(tensor.integers) * magnitudes).astype(np.int32)


def ans_coder(coded: list[tuple[Array, Histogram]]) -> Any:
    """Return constriction's coder that holds the tensors' int32 integers, the first on top."""
    import constriction

    coder = constriction.stream.stack.AnsCoder()
    for integers, histogram in reversed(coded):
        places = np.searchsorted(histogram.values, integers).astype(np.int32)
        coder.encode_reverse(places, ans_model(histogram))
    return coder


def ans_model(histogram: Histogram) -> Any:
    """Return constriction's model of a tensor, made of nothing but the table."""
    import constriction

    probabilities = (histogram.counts / histogram.counts.sum()).astype(np.float32)
    return constriction.stream.model.Categorical(probabilities, perfect=False)


def _varint(number: int) -> bytes:
    """Return a number of 0 or more in groups of seven bits, the least significant first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(0x80 | number & 0x7F)
        number >>= 7
    groups.append(number)
    return bytes(groups)
