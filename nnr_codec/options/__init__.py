"""Options of the encoder, each declared once with its values, and limits of the decoder."""

from .decomposition import DecompositionOptions
from .encode_options import PRESETS, TENSOR_OPTIONS, EncodeOptions, UnaryLength
from .globs import escaped, matches_tensor
from .limits import DecodeLimits

__all__ = [
    "PRESETS",
    "TENSOR_OPTIONS",
    "DecodeLimits",
    "DecompositionOptions",
    "EncodeOptions",
    "UnaryLength",
    "escaped",
    "matches_tensor",
]
