"""The tensors of a bitstream as the parameters of a model, decoded one by one as they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ..errors import InvalidModel
from ..factorization.files import factors_metadata
from ..model import Array, Parameter
from ..remote.remote_file import RemoteFile
from ..support.rereadable_file import RereadableFile
from .source import Source
from .stream_decoder import StreamDecoder
from .stream_map import Layers
from .unit_decoder import DecodedTensor


class DecodedModel:
    """What a stream decodes to, in order: the parameters at once, each one's values in its turn.

    The headers are read first, which give names, shapes and element types. A parameter's values
    are decoded when it is read; each can be read once, and none before the one ahead of it. So a
    file is written with one tensor in memory (and those that later ones are tied to).

    Attributes:
        parameters: of the tensors, in order.
        metadata: the text entries of the model's file, and the map of the factors among the
            tensors, which goes along with them.
    """

    def __init__(
        self,
        decoder: StreamDecoder,
        source: RereadableFile | RemoteFile,
        layers: Layers = "dense",
        observe: Callable[[str, Array], object] | None = None,
    ) -> None:
        """Read the headers of `source`.

        Args:
            decoder: how to decode.
            source: the bitstream, to be kept open as long as the parameters are read.
            layers: as of :func:`nnr_codec.decode`.
            observe: called with each tensor's name and values as soon as they are decoded.

        Raises:
            BitstreamError: the headers are damaged, or ask for what is not supported or allowed.
        """
        outlines = {tensor.name: tensor for tensor in decoder.outline(source, layers)}
        self._outlines = outlines
        self.parameters = []
        for name, tensor in outlines.items():
            tied_to = tensor.tied_to if tensor.tied_to in outlines else None
            shape, dtype = tensor.values.shape, tensor.values.dtype
            self.parameters.append(
                Parameter(name, shape, dtype, partial(self._load, name), tied_to)
            )
        factors = factors_metadata(decoder.factorizations, outlines)
        self.metadata = {**decoder.metadata, **factors}
        if isinstance(source, RereadableFile):
            source.rewind()
        self._source = source.name
        self._tensors = decoder.tensors(source, layers)
        self._observe = observe or (lambda name, values: None)

    def _load(self, name: str) -> Array:
        """Decode as far as the tensor `name`.

        Raises:
            BitstreamError: the payload is damaged.
            InvalidModel: the file is another one than when its headers were read.
        """
        outline = self._outlines[name].values
        while (tensor := next(self._tensors, None)) is not None:
            self._observe(tensor.name, tensor.values)
            if tensor.name == name:
                if (tensor.values.shape, tensor.values.dtype) == (outline.shape, outline.dtype):
                    return tensor.values
                break
        raise InvalidModel(name, f"in {self._source!r}, which changes while it is read")

    def finish(self) -> None:
        """Decode what was not read: of tied tensors, some formats hold the first alone."""
        for tensor in self._tensors:
            self._observe(tensor.name, tensor.values)


class ArrivingModel:
    """What a stream decodes to while it arrives: tensor after tensor, nothing known beforehand.

    Attributes:
        count, elements, bytes: of the tensors that have come.
    """

    def __init__(
        self,
        decoder: StreamDecoder,
        source: Source,
        observe: Callable[[str, Array], object] | None = None,
    ) -> None:
        """Take `decoder` and `observe` as :class:`DecodedModel` does, and read nothing yet."""
        self.count, self.elements, self.bytes = 0, 0, 0
        self._decoder = decoder
        self._source = source
        self._observe = observe or (lambda name, values: None)

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Return the names and values, in order, once; of what was taken none is kept.

        Raises: as `StreamDecoder.tensors`.
        """
        return map(self._noted, self._decoder.tensors(self._source))

    def _noted(self, tensor: DecodedTensor) -> tuple[str, Array]:
        self.count += 1
        self.elements += tensor.values.size
        self.bytes += tensor.values.nbytes
        self._observe(tensor.name, tensor.values)
        return tensor.name, tensor.values

    def metadata(self) -> dict[str, str]:
        """Return the text entries of the model's file, once all tensors have come."""
        return dict(self._decoder.metadata)
