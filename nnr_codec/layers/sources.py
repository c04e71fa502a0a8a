"""What layers are loaded from: a bitstream or a model file, dense or as factors, read in order."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from ..checkpoints import open_checkpoint
from ..checkpoints.file_format import is_model_file
from ..decoding.decoded_model import DecodedModel
from ..decoding.source import Bytes, Path, Source, name_of
from ..decoding.stream_decoder import StreamDecoder
from ..decoding.stream_map import Layers
from ..decoding.unit_decoder import DecodedTensor
from ..factorization.factorizations import Factorization
from ..factorization.files import factorizations_of
from ..model import Parameter
from ..options import DecodeLimits
from ..remote.addresses import is_address, local_path
from ..support.rereadable_file import RereadableFile

LoadSource = Bytes | Path | BinaryIO
"""What a module is loaded from."""


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Tensors to load.

    Attributes:
        name: of the file, for messages.
        parameters: in order, each to be read once and in that order; factors included.
        factorizations: what factors among them make, by the name of the weight.
    """

    name: str
    parameters: list[Parameter]
    factorizations: Mapping[str, Factorization]


@dataclass(frozen=True, slots=True)
class ArrivingTensors:
    """Tensors to load of which nothing is known before they come.

    Attributes:
        name: of the file, for messages.
        tensors: in order, factors included.
        factorizations: returns what factors make, by the name of the weight: as far as tensors have
            come, and the weights of the last one are known.
    """

    name: str
    tensors: Iterator[DecodedTensor]
    factorizations: Callable[[], Mapping[str, Factorization]]


@contextmanager
def opened(
    source: LoadSource,
    layers: Layers,
    parents: Sequence[Source],
    limits: DecodeLimits | None,
    base: Sequence[Source] = (),
    cache: Path | None = None,
    quality: int | None = None,
) -> Iterator[TensorSource | ArrivingTensors]:
    """Open a bitstream, or a model file (which is told by its content); `cache`, `quality`: as of
    :func:`nnr_codec.decode`.

    Of a stream with `layers` "dense", there are no factors; of a file of factors there are always.
    What can be read once alone, or is at an address, gives tensors as they arrive.

    Raises:
        BitstreamError: the stream's headers are damaged, or ask for what is not allowed.
        InvalidModel: the file is damaged, or its model map is.
    """
    with ExitStack() as stack:
        if isinstance(source, str | os.PathLike) and is_model_file(os.fspath(source)):
            name = os.fspath(source)
            model = stack.enter_context(open_checkpoint(name))
            parameters, metadata = list(model.values()), model.metadata
        else:
            name = os.fspath(name_of(source) or "a bitstream")
            decoder = StreamDecoder(
                parents=parents, base=base, limits=limits, cache=cache, quality=quality
            )
            file = None if is_address(source) else stack.enter_context(_file(source))
            if file is None or not _can_be_read_again(file):
                tensors = stack.enter_context(closing(decoder.tensors(file or source, layers)))
                yield ArrivingTensors(name, tensors, lambda: decoder.factorizations)
                return
            decoded = DecodedModel(decoder, RereadableFile(file, None, name), layers)
            parameters, metadata = decoded.parameters, decoded.metadata
        weights = factorizations_of(name, metadata, parameters, limits)
        yield TensorSource(name, parameters, weights)


@contextmanager
def _file(source: LoadSource) -> Iterator[BinaryIO]:
    """Give a bitstream as a file."""
    if isinstance(source, Bytes):
        yield io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        with open(local_path(source), "rb") as file:
            yield file
    else:
        yield source


def _can_be_read_again(file: BinaryIO) -> bool:
    return hasattr(file, "seekable") and file.seekable()
