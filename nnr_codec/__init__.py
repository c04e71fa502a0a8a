"""Codec for neural networks in the ISO/IEC 15938-17 (NNR) bitstream."""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

try:
    from ._core import DecodeStatus as _DecodeStatus  # noqa: F401
except ImportError as error:
    raise ImportError(
        "nnr_codec's compiled core is missing. This is its source folder? Install it with "
        "'pip install .' and run from another folder, or with 'pip install -e .'"
    ) from error

from .decoder import decode, load_file, stream_tensors
from .encoder import EncodeResult, encode, save_file
from .errors import (
    BitstreamError,
    InvalidBitstream,
    InvalidModel,
    InvalidOptions,
    LimitExceeded,
    MissingParent,
    NnrError,
    NnrWarning,
    TargetNotReached,
    TruncatedBitstream,
    UnsupportedFeature,
    VerificationMismatch,
    WrongBase,
)
from .options import DecodeLimits, EncodeOptions
from .remote.remote_file import RemoteFile
from .stream import NnrStream

if _TYPE_CHECKING:
    from .asynchronous import stream_tensors_async

open = NnrStream

__all__ = [
    "BitstreamError",
    "DecodeLimits",
    "EncodeOptions",
    "EncodeResult",
    "InvalidBitstream",
    "InvalidModel",
    "InvalidOptions",
    "LimitExceeded",
    "MissingParent",
    "NnrError",
    "NnrStream",
    "NnrWarning",
    "RemoteFile",
    "TargetNotReached",
    "TruncatedBitstream",
    "UnsupportedFeature",
    "VerificationMismatch",
    "WrongBase",
    "__version__",
    "decode",
    "encode",
    "load_file",
    "open",
    "save_file",
    "stream_tensors",
    "stream_tensors_async",
]


def __dir__() -> list[str]:
    """Return the public names."""
    return list(__all__)


def __getattr__(name: str) -> _Any:
    """Return what takes longer to load than most of the package, when it is needed."""
    if name == "__version__":
        return _version()
    if name == "stream_tensors_async":  # with asyncio
        from .asynchronous import stream_tensors_async

        return stream_tensors_async
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("nnr-codec")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "(not installed)"
