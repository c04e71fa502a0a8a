"""Options of the encoder and limits of the decoder: frozen dataclasses."""

from .decomposition import DecompositionOptions
from .encode_options import (
    AUTOMATIC,
    PRESETS,
    TENSOR_OPTIONS,
    EncodeOptions,
    UnaryLength,
    matches_tensor,
)
from .limits import DecodeLimits

__all__ = [
    "AUTOMATIC",
    "PRESETS",
    "TENSOR_OPTIONS",
    "DecodeLimits",
    "DecompositionOptions",
    "EncodeOptions",
    "UnaryLength",
    "matches_tensor",
]
