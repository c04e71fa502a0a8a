"""The decoder: read, decode, dequantize, recompose, hand out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy.typing as npt

from .decoding.stream_decoder import Source, StreamDecoder
from .decoding.stream_map import Layers
from .options import DecodeLimits


def decode(
    source: Source,
    *,
    base: Sequence[Source] = (),
    parents: Sequence[Source] = (),
    only: str | None = None,
    layers: Layers = "dense",
    limits: DecodeLimits | None = None,
    executor: Executor | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Decode a bitstream.

    Args:
        source: the bitstream: bytes, a path, or a binary file or pipe.
        base: of an update that was encoded with a base, the streams of that, oldest first: the
            result is the whole model. Before anything is returned they are compared with what the
            update says of them; with `only` by their bytes, else by what they decode to as well.
        parents: the earlier streams of a series of updates, oldest first. They serve the contexts
            alone; the result is the tensors of this stream (of an update: differences).
        only: a glob; tensors whose names do not match are neither decoded nor returned.
        layers: "dense" gives the weight that a decomposed layer stands for, under its name;
            "factorized" gives the factors, with names ending in ``.factor0``, ``.factor1``, …, or
            ``_G`` and ``_H``. ``nnr_codec.open(…).factorizations`` tells what they make.
        limits: what the bitstream may ask for; by default ``DecodeLimits()``.
        executor: runs the work side by side, for instance a ThreadPoolExecutor; workers may be
            other processes or machines. The result does not depend on it.

    Returns:
        The tensors by name, in stream order: float32 and int32, unless the stream says otherwise.

    Raises:
        BitstreamError: the bitstream is damaged, or asks for what is not supported or allowed.
        WrongBase: the base is missing, or another one; it is a BitstreamError.
        InvalidOptions: an option has no such value.
        OSError: the file cannot be read.
    """
    decoder = StreamDecoder(parents=parents, base=base, only=only, limits=limits, executor=executor)
    return {tensor.name: tensor.values for tensor in decoder.tensors(source, layers)}


def load_file(filename: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Decode the file `filename`; raises what `decode` raises."""
    return decode(filename)
