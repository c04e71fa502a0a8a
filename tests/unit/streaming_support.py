"""A stream of some units of known ends, for tests of decoding while it arrives."""

from __future__ import annotations

from functools import cache
from itertools import accumulate

import numpy as np

import nnr_codec
from nnr_codec.bitstream import DataUnit, parse_units
from nnr_codec.model import Array

NAMES = [f"{number}.weight" for number in range(5)]


@cache
def stream() -> bytes:
    """A stream of the tensors NAMES, each in a unit of a few kilobytes."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 0.1, (64, 48)).astype(np.float32) for name in NAMES}
    return nnr_codec.encode(arrays).data or b""


@cache
def expected() -> dict[str, Array]:
    """What `stream` decodes to."""
    return nnr_codec.decode(stream())


@cache
def unit_ends() -> list[int]:
    """Bytes up to the end of each data unit."""
    units = list(parse_units(stream()))
    ends = accumulate(parsed.unit.size for parsed in units)
    return [
        end for end, parsed in zip(ends, units, strict=True) if isinstance(parsed.record, DataUnit)
    ]
