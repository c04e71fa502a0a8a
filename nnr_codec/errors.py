"""The exceptions of nnr_codec: one hierarchy, rooted at :class:`NnrError`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class NnrError(Exception):
    """Base of every error that nnr_codec raises on purpose.

    Attributes:
        source: path of the file at fault, where one was read and the message does not say it.
    """

    source: str | None = None

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.source is None else f"{self.source}: {message}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers in other processes return their errors. By default these would be made again
        # from the constructor's arguments, which `args` are not.
        return _rebuilt, (type(self), self.args, self.__dict__)


class NnrWarning(UserWarning):
    """Something of a model is not as one may expect: left out, or damaged by a coarse step."""


def _rebuilt(kind: type[NnrError], args: tuple[Any, ...], attributes: dict[str, Any]) -> NnrError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class InvalidOptions(NnrError):
    """An option has a value outside its range, or options contradict each other.

    Attributes:
        option: name of the option.
    """

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option = option
        self.reason = reason


class TargetNotReached(InvalidOptions):
    """No stream that was tried is as small, or as good, as a target says: nothing was written."""


class InvalidModel(NnrError):
    """A model file, or one of its parameters, cannot be coded.

    Attributes:
        parameter: name of the parameter or file at fault.
    """

    def __init__(self, parameter: str, reason: str) -> None:
        super().__init__(f"{parameter!r}: {reason}")
        self.parameter = parameter
        self.reason = reason


class QuantizationOverflow(InvalidModel):
    """Quantized so coarsely, a parameter's values leave its element type."""


class VerificationMismatch(NnrError):
    """A bitstream does not decode to the model that it should: nothing was written."""


class BitstreamError(NnrError):
    """Base of the errors that a bitstream can have."""


class InvalidBitstream(BitstreamError):
    """The bitstream breaks the syntax or the semantics of the format.

    Attributes:
        unit: the unit at fault, such as ``"unit 3 (NNR_NDU)"``.
        byte_offset: bytes from the start of the bitstream to where the fault was seen.
        reason: what is wrong.
    """

    def __init__(self, unit: str, byte_offset: int, reason: str) -> None:
        super().__init__(f"{unit}, byte {byte_offset}: {reason}")
        self.unit = unit
        self.byte_offset = byte_offset
        self.reason = reason


class TruncatedBitstream(InvalidBitstream):
    """The data ends before the bitstream, a unit or a codeword does."""


class UnsupportedFeature(BitstreamError):
    """The bitstream uses a syntax element value that this decoder does not implement.

    Attributes:
        element: the syntax element, in the standard's name.
        value: the value that it has.
    """

    def __init__(self, element: str, value: object, reason: str = "not supported") -> None:
        super().__init__(f"{element} = {value}: {reason}")
        self.element = element
        self.value = value


class LimitExceeded(BitstreamError):
    """The bitstream asks for more than :class:`nnr_codec.DecodeLimits` allows.

    Attributes:
        limit: name of the limit.
        value: what the bitstream asks for.
    """

    def __init__(self, limit: str, value: int, allowed: int) -> None:
        super().__init__(f"{limit}: the bitstream asks for {value}, the limit is {allowed}")
        self.limit = limit
        self.value = value
        self.allowed = allowed


class MissingParent(BitstreamError):
    """An update refers to a tensor that none of the parent bitstreams holds.

    Attributes:
        name: name of the tensor.
    """

    def __init__(self, name: str, reason: str = "no parent bitstream holds this tensor") -> None:
        super().__init__(f"{name!r}: {reason}")
        self.name = name


class WrongBase(BitstreamError):
    """The base of an update is missing, or is not the one that the update was made for.

    Attributes:
        reason: what is wrong.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@contextmanager
def naming(path: str | os.PathLike[str] | None, kind: type[NnrError]) -> Iterator[None]:
    """Let errors of `kind`, and those of the operating system, name the file, if there is one,
    unless they do."""
    text = None if path is None else os.fspath(path)
    try:
        yield
    except kind as error:
        if text is not None and error.source is None and repr(text) not in str(error):
            error.source = text
        raise
    except OSError as error:
        # Without a number (of a connection, say) the message would be lost.
        if text is not None and error.filename is None and error.errno is not None:
            error.filename = text
        raise
