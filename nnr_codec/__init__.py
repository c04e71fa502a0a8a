"""Codec for neural networks in the ISO/IEC 15938-17 (NNR) bitstream."""

from .decoder import decode
from .encoder import EncodeResult, encode
from .errors import (
    BitstreamError,
    InvalidBitstream,
    InvalidModel,
    InvalidOptions,
    LimitExceeded,
    MissingParent,
    NnrError,
    TruncatedBitstream,
    UnsupportedFeature,
)
from .options import DecodeLimits, EncodeOptions

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
    "TruncatedBitstream",
    "UnsupportedFeature",
    "decode",
    "encode",
]
