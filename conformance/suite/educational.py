"""spec/educational_decoder.py as a module, and what it expects of a stream."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from .cases import Case, ExpectedTensor, describe

PATH = Path(__file__).parents[2] / "spec" / "educational_decoder.py"


def load(source: str | None = None) -> ModuleType:
    """Execute the decoder, or another version of its source, as a module of its own."""
    text = PATH.read_text(encoding="utf-8") if source is None else source
    module = ModuleType("educational_decoder")
    sys.modules[module.__name__] = module  # its dataclasses look it up
    exec(compile(text, str(PATH), "exec"), module.__dict__)
    return module


@cache
def educational_decoder() -> ModuleType:
    """The decoder as it is; not to be changed."""
    return load()


def series_of(decoder: ModuleType, parents: Sequence[bytes]) -> Any:
    """What the earlier streams of a series leave; raises ValueError if one is refused."""
    series = decoder.Series()
    for parent in parents:
        series.append(decoder.decode_bitstream(parent, series))
    return series


def described(stream: bytes, parents: Sequence[bytes] = ()) -> list[ExpectedTensor]:
    """What the decoder gives: the tensors, and the factors of those that are decomposed.

    Raises:
        ValueError: it refuses the stream.
    """
    decoder = educational_decoder()
    coded = decoder.decode_bitstream(stream, series_of(decoder, parents))
    dense, both = decoder.assemble(coded, False), decoder.assemble(coded, True)
    return describe(both, both.keys() - dense.keys())


def first_difference(case: Case, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Say where the first tensor that differs in values begins to; "" if none does, or the decoder
    does not know."""
    if case.base is not None:
        return ""
    parents = [path.read_bytes() for path in case.parents]
    expected = educational_decoder().decode(case.stream.read_bytes(), parents, True)
    for name, wanted in expected.items():
        values = tensors.get(name)
        if values is None or values.shape != wanted.shape or values.dtype.kind != wanted.dtype.kind:
            continue
        with np.errstate(all="ignore"):
            values = values.astype(wanted.dtype)
        unsigned = f"u{wanted.itemsize}"
        differing = np.argwhere(values.view(unsigned) != wanted.view(unsigned))
        if len(differing):
            first = tuple(map(int, differing[0]))
            return (
                f"element {list(first)} of {name!r} is {values[first]}, expected {wanted[first]}, "
                f"the first of {len(differing)}"
            )
    return ""
