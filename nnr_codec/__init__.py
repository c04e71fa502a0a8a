"""Codec for neural networks in the ISO/IEC 15938-17 (NNR) bitstream."""

try:
    from ._core import DecodeStatus as _DecodeStatus  # noqa: F401
except ImportError as error:
    raise ImportError(
        "nnr_codec's compiled core is missing. This is its source folder? Install it with "
        "'pip install .' and run from another folder, or with 'pip install -e .'"
    ) from error

from .decoder import decode, load_file
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
from .stream import NnrStream

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
]


def __dir__() -> list[str]:
    """Return the public names."""
    return list(__all__)


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata  # late: it takes longer to load than most of the package

    try:
        return metadata.version("nnr-codec")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "(not installed)"
