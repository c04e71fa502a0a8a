"""The decoder: read, decode, dequantize, recompose, hand out."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy.typing as npt

from .decoding.source import Source
from .decoding.stream_decoder import StreamDecoder
from .decoding.stream_map import Layers, Selection
from .decoding.unit_decoder import DecodedTensor
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
    cache: str | os.PathLike[str] | None = None,
    quality: int | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Decode a bitstream.

    Args:
        source: the bitstream: bytes, a path, a binary file or pipe, or an address: http://…,
            https://…, or what fsspec reads, such as s3://…. Of an address, only what is needed is
            fetched, as far as the table of contents tells (``EncodeOptions(index=True)``).
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
        cache: of an address, a folder that keeps what has come for later runs, which go on where
            this one ends. Without it nothing is kept.
        quality: of a file of quality layers, how many of these to take; None: all that are there.

    Returns:
        The tensors by name, in stream order: float32 and int32, unless the stream says otherwise.

    Raises:
        BitstreamError: the bitstream is damaged, or asks for what is not supported or allowed.
        WrongBase: the base is missing, or another one; it is a BitstreamError.
        InvalidOptions: an option has no such value.
        OSError: the file cannot be read, or the address.
    """
    decoder = StreamDecoder(
        parents=parents,
        base=base,
        only=only,
        limits=limits,
        executor=executor,
        cache=cache,
        quality=quality,
    )
    return {tensor.name: tensor.values for tensor in decoder.tensors(source, layers)}


def stream_tensors(
    source: Source,
    *,
    parents: Sequence[Source] = (),
    base: Sequence[Source] = (),
    only: str | None = None,
    layers: Layers = "dense",
    limits: DecodeLimits | None = None,
    executor: Executor | None = None,
    cache: str | os.PathLike[str] | None = None,
    quality: int | None = None,
) -> Generator[tuple[str, npt.NDArray[Any]], None, None]:
    """Decode a bitstream tensor by tensor, each as soon as its part of the source has arrived.

    Of what was handed out nothing is kept here, but tensors that later ones are tied to (which are
    the same array): memory is that of one tensor, if the caller lets each go before the next one.
    With an `executor` other tensors are decoded meanwhile, up to 512 MB of them: of a pipe those
    that have arrived, which a thread reads ahead.

    With a `base` the whole update has to be there first.

    Of several quality layers all are read first, as each of them changes every weight.

    The arguments and errors are those of :func:`decode`; errors come behind the tensors before
    them. A file or pipe is read from where it stands, and stays open. What the iterator opens it
    closes when it ends, is closed (`close()`) or is dropped.

    >>> import numpy as np
    >>> import nnr_codec
    >>> data = nnr_codec.encode({"w": np.eye(3, dtype=np.float32)}).data
    >>> [(name, values.shape) for name, values in nnr_codec.stream_tensors(data)]
    [('w', (3, 3))]
    """
    Selection(layers)  # checks them
    decoder = StreamDecoder(
        parents=parents,
        base=base,
        only=only,
        limits=limits,
        executor=executor,
        cache=cache,
        quality=quality,
    )
    return _named(decoder.tensors(source, layers))


def _named(
    tensors: Generator[DecodedTensor, None, None],
) -> Generator[tuple[str, npt.NDArray[Any]], None, None]:
    """Yield names and values; none is held while the next tensor is decoded."""
    try:
        yield from map(_name_and_values, tensors)
    finally:
        tensors.close()


def _name_and_values(tensor: DecodedTensor) -> tuple[str, npt.NDArray[Any]]:
    return tensor.name, tensor.values


def load_file(filename: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Decode the file `filename`; raises what `decode` raises."""
    return decode(filename)
