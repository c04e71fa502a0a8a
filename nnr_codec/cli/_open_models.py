"""Models of which tensors are read one by one, whichever files they are in."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

from ..checkpoints import open_checkpoint
from ..checkpoints.file_format import is_model_file
from ..checkpoints.folder import STREAM
from ..decoding.source import check_sources
from ..decoding.stream_decoder import StreamDecoder
from ..decoding.stream_description import describe_stream
from ..decoding.stream_map import Selection
from ..decoding.unit_decoder import DecodedTensor
from ..decoding.updates.base_model import BaseModel, opened_base
from ..decoding.updates.changes import changes_of
from ..errors import InvalidOptions, WrongBase
from ..factorization.files import with_weights
from ..model import Array, Parameter
from ..remote.addresses import is_address
from ..remote.remote_file import RemoteFile
from ..stream import NnrStream
from . import _common as common
from . import _files
from ._updates import base_files


@dataclass(frozen=True)
class OpenModel:
    """A model whose tensors are read one by one.

    Attributes:
        parameters: by name, in order; weights in factors are formed when they are read.
        bytes: of a stream, all of it; else of all values.
        coded_bytes: of a stream, what each tensor's unit takes, by name; 0 for what shares the unit
            of another one, or an update leaves as it is. Of a weight in factors, all of these.
            Empty for a model file.
        is_update: whether it is a stream that was opened with a base.
    """

    parameters: Mapping[str, Parameter]
    bytes: int
    coded_bytes: Mapping[str, int]
    is_update: bool = False


class ModelOpener:
    """Opens models by the options of a command: --base, --cache and --limit."""

    def __init__(self, given: argparse.Namespace, executor: Executor | None) -> None:
        """`executor`: decodes parts of a stream's units side by side."""
        self._given = given
        self._executor = executor
        self._limits = common.limits(given)

    @cached_property
    def _base(self) -> BaseModel:
        """What updates are opened with: once, as it may be fetched."""
        return opened_base(base_files(self._given), self._limits, self._given.cache)

    @contextmanager
    def opened(self, path: str, quality: int | None = None) -> Iterator[OpenModel]:
        """Open a bitstream, also at an address, a model file, or a folder with one of these.

        `quality`: layers that are taken of a file of several.

        Raises:
            BitstreamError: the file is neither, its headers or those of the base are damaged, or it
                is an update of another base, or of one that is not named.
            InvalidModel: the model file is damaged, or a folder of the base has no stream.
            InvalidOptions: it has not as many quality layers, or a base is no bitstream.
            OSError: it cannot be read.
        """
        if os.path.isfile(os.path.join(path, STREAM)):
            path = os.path.join(path, STREAM)
        with ExitStack() as stack:
            if os.path.isdir(path) or is_model_file(path):
                if quality is not None:
                    reason = f"{path!r} is no bitstream, and has no quality layers"
                    raise InvalidOptions("--quality", reason)
                model, _ = with_weights(stack.enter_context(open_checkpoint(path)))
                yield OpenModel(dict(model), sum(p.nbytes for p in model.values()), {})
                return
            file: RemoteFile | str = path
            if is_address(path):
                file = cast(RemoteFile, stack.enter_context(_files.opened(self._given, path)))
            try:
                opened = self._stream(file, quality, stack)
            except WrongBase:
                if not self._given.base:
                    raise
                check_sources(self._given.base, (), quality)
                opened = self._update(file)
            yield opened

    def _stream(self, file: RemoteFile | str, quality: int | None, stack: ExitStack) -> OpenModel:
        """Open a stream that stands by itself."""
        outlines = list(StreamDecoder(limits=self._limits, quality=quality).outline(file))
        stream = stack.enter_context(
            NnrStream(file, limits=self._limits, executor=self._executor, quality=quality)
        )
        info = stream.info()
        sizes = {tensor.name: tensor.bytes for tensor in info.tensors}
        sizes |= {weight.name: weight.bytes for weight in info.factorizations}
        return OpenModel(_parameters(outlines, stream.__getitem__), info.bytes, sizes)

    def _update(self, file: RemoteFile | str) -> OpenModel:
        """Open an update of the base, or of what the base was before its last streams."""
        model = self._updated(file, self._base)
        tensors = model.lazy_tensors(Selection())
        parameters = _parameters(model.outlines(Selection()), lambda name: tensors[name].read())
        sizes = {change.name: change.bytes for change in changes_of(model)}
        total = describe_stream(model.streams[-1].units).bytes
        return OpenModel(parameters, total, sizes, is_update=True)

    def _updated(self, file: RemoteFile | str, base: BaseModel) -> BaseModel:
        try:
            return base.with_update(file, self._given.cache)
        except WrongBase:
            if base.before is not None:
                with suppress(WrongBase):  # the first one says what is expected of the whole base
                    return self._updated(file, base.before)
            raise


def _parameters(
    outlines: Iterable[DecodedTensor], read: Callable[[str], Array]
) -> dict[str, Parameter]:
    """Return what is read when it is wanted, of these shapes and types."""
    return {
        tensor.name: Parameter(
            *(tensor.name, tensor.values.shape, tensor.values.dtype), partial(read, tensor.name)
        )
        for tensor in outlines
    }
