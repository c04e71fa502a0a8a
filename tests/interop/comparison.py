"""Comparing what we decode with what the reference decodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnr_codec import decode
from nnr_codec.bitstream import Topology, read_units, write_record

Tensors = Mapping[str, npt.NDArray[Any]]


def as_float32(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Round the reference's binary64 tensors (those with a codebook) once; leave the others."""
    return values.astype(np.float32) if values.dtype == np.float64 else values


def assert_same(ours: Tensors, theirs: Tensors, *, same_dtype: bool = True) -> None:
    """Names, shapes and all bits are equal, signs of zeros included.

    With `same_dtype` false the stream asks for types that the reference does not know: its int32
    and float32 are converted to ours.
    """
    assert sorted(ours) == sorted(theirs)
    for name, values in ours.items():
        other = as_float32(theirs[name])
        if not same_dtype and other.dtype.kind == values.dtype.kind:
            other = other.astype(values.dtype)
        assert other.dtype == values.dtype, f"{name!r}: {other.dtype}, ours {values.dtype}"
        assert other.shape == values.shape, f"{name!r}: {other.shape}, ours {values.shape}"
        different = np.flatnonzero(other != values)[:8]
        assert other.tobytes() == values.tobytes(), f"{name!r} differs, at {different}"


def without_map(stream: bytes | None) -> bytes:
    """Return a stream of ours with an empty topology unit: every tensor as it is coded."""
    units = [bytes(unit.data) for unit in read_units(stream or b"")]
    return b"".join([*units[:2], write_record(Topology()), *units[3:]])


def check_stream(peer: Any, *streams: bytes, same_dtype: bool = True) -> Tensors:
    """Decode the last of `streams` with both, the others being its parents, and compare."""
    *parents, last = streams
    ours = decode(last, parents=parents)
    assert_same(ours, peer.decode(*streams), same_dtype=same_dtype)
    return ours


def check_series(peer: Any, streams: Sequence[bytes]) -> None:
    """Compare every stream of a series, without maps: what is coded exactly is integers then."""
    bare = [without_map(stream) for stream in streams]
    for count in range(1, len(bare) + 1):
        check_stream(peer, *bare[:count])
