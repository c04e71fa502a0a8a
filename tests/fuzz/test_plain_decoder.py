"""Damaged streams: the educational decoder finds the same as ours."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from fuzz_support import ROOT, Arrays, Mutator, mapped_streams, seeds, vector

import nnr_codec
from nnr_codec import DecodeLimits
from nnr_codec.errors import BitstreamError, LimitExceeded

pytestmark = pytest.mark.filterwarnings("error")  # damage must not show as warnings of numpy


SMALL = DecodeLimits(max_elements_per_tensor=2**13, max_elements=2**14)

KNOWN_REFUSALS = (
    # Ours alone refuses, by its errors' texts: what the plain decoder has no need to check.
    "mps_parent_signalling_enabled_flag",
    "a string is not UTF-8",  # in data that the plain decoder passes over
)
KNOWN_ACCEPTANCES = (
    # The plain decoder alone refuses: factors in units of their own (E9).
    "the factors of",
)


@cache
def plain_decoder() -> Any:
    """spec/educational_decoder.py as a module."""
    path = ROOT / "spec" / "educational_decoder.py"
    spec = importlib.util.spec_from_file_location("educational_decoder", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["educational_decoder"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def both(stream: bytes, parents: Sequence[bytes] = ()) -> tuple[Arrays | str, Arrays | str]:
    """What our decoder and the plain one make of a stream: tensors, or the error's text."""
    found: list[Arrays | str] = []
    for decode, more in ((nnr_codec.decode, {"limits": SMALL}), (plain_decoder().decode, {})):
        try:
            found.append(decode(stream, parents=parents, **more))
        except LimitExceeded:
            return "limit", "limit"  # too slow for the plain decoder
        except (BitstreamError, ValueError) as error:
            found.append(str(error))
    return found[0], found[1]


def same_arrays(ours: Arrays, plain: Arrays) -> bool:
    """Names, types, shapes and values; products of factors up to the last bit (errata E20)."""
    if set(ours) != set(plain):
        return False
    for name, values in ours.items():
        other = plain[name]
        if (values.dtype, values.shape) != (other.dtype, other.shape):
            return False
        exact = np.array_equal(values, other, equal_nan=values.dtype.kind == "f")
        if not exact and not np.allclose(values, other, rtol=3e-7, atol=0, equal_nan=True):
            return False
    return True


def disagreement(ours: Arrays | str, plain: Arrays | str) -> str:
    """What the decoders disagree on, if it is no known difference; else nothing."""
    if isinstance(ours, str) and isinstance(plain, str):
        return ""
    if isinstance(ours, str):
        return "" if any(known in ours for known in KNOWN_REFUSALS) else f"ours alone: {ours}"
    if isinstance(plain, str):
        return "" if any(known in plain for known in KNOWN_ACCEPTANCES) else f"plain alone: {plain}"
    return "" if same_arrays(ours, plain) else "the tensors differ"


def test_the_plain_decoder_agrees() -> None:
    """Both accept or both refuse, and both find the same tensors."""
    # The plain decoder does not know the model map.
    small = [stream for stream in seeds() if len(stream) < 1500 and stream not in mapped_streams()]
    mutator = Mutator(500, small)
    decoded = 0
    for _ in range(4000):
        stream = mutator.mutant()
        ours, plain = both(stream)
        found = disagreement(ours, plain)
        assert not found, f"{found}: {stream.hex()}"
        decoded += not isinstance(ours, str)
    assert decoded > 50


@pytest.mark.parametrize("series", ["hist_tca", "update_codebook"])
def test_the_plain_decoder_agrees_on_series(series: str) -> None:
    streams = [vector(f"{series}_{step}") for step in range(3)]
    mutator = Mutator(600, streams)
    decoded = 0
    for _ in range(150):
        chain = list(streams)
        chain[mutator.random.randrange(3)] = mutator.mutant()
        ours, plain = both(chain[2], chain[:2])
        found = disagreement(ours, plain)
        assert not found, f"{found}: {[data.hex() for data in chain]}"
        decoded += not isinstance(ours, str)
    assert decoded > 5
