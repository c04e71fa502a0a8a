"""What layers are loaded from: a bitstream or a model file, dense or as factors, read in order."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ..checkpoints import open_checkpoint
from ..checkpoints.file_format import format_of
from ..decoding.decoded_model import DecodedModel
from ..decoding.stream_decoder import Bytes, Source, StreamDecoder
from ..decoding.stream_map import Layers
from ..errors import InvalidModel
from ..factorization.factorizations import Factorization
from ..factorization.files import factorizations_of
from ..model import Parameter
from ..options import DecodeLimits
from ..support.rereadable_file import RereadableFile, rereadable


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


@contextmanager
def opened(
    source: Bytes | str | os.PathLike[str],
    layers: Layers,
    parents: Sequence[Source],
    limits: DecodeLimits | None,
    base: Sequence[Source] = (),
) -> Iterator[TensorSource]:
    """Open a bitstream, or a model file (which is told by its content).

    Of a stream with `layers` "dense", there are no factors; of a file of factors there are always.

    Raises:
        BitstreamError: the stream's headers are damaged, or ask for what is not allowed.
        InvalidModel: the file is damaged, or its model map is.
    """
    with ExitStack() as stack:
        path = None if isinstance(source, Bytes) else os.fspath(source)
        if path is not None and _is_model_file(path):
            model = stack.enter_context(open_checkpoint(path))
            parameters, metadata = list(model.values()), model.metadata
        else:
            decoder = StreamDecoder(parents=parents, base=base, limits=limits)
            decoded = DecodedModel(decoder, _stream(source, stack), layers)
            parameters, metadata = decoded.parameters, decoded.metadata
        name = "a bitstream" if path is None else path
        weights = factorizations_of(name, metadata, parameters, limits)
        yield TensorSource(name, parameters, weights)


def _stream(source: Bytes | str | os.PathLike[str], stack: ExitStack) -> RereadableFile:
    if not isinstance(source, Bytes):
        return stack.enter_context(rereadable(source))
    file = io.BytesIO(source)
    file.name = "a bitstream"
    return RereadableFile(file, None)


def _is_model_file(path: str) -> bool:
    """Whether a file is one by its content; all others count as bitstreams."""
    try:
        format_of(path)
    except InvalidModel:
        return False
    return True
