"""The methods that a plan can name as ``codec``, each a small module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InvalidOptions
from .base import Codec, Decoded, Encoded
from .external import ExternalCodec
from .nnr import NnrCodec
from .simple import BytePlaneCodec, Float16Codec, IntegerCodec

__all__ = ["CODECS", "Codec", "Decoded", "Encoded", "codec_from"]

CODECS: Mapping[str, Any] = {
    "nnr": NnrCodec,
    "external": ExternalCodec,
    "int8": IntegerCodec,
    "fp16": Float16Codec,
    "byteplane": BytePlaneCodec,
}
"""Codecs by the names that plans give them, each with ``from_options(values, folder)``."""


def codec_from(name: str, options: Mapping[str, Any], folder: Path) -> Codec:
    """Return a codec at an operating point.

    Args:
        name: one of `CODECS`.
        options: its options, as they stand in a plan.
        folder: the plan's folder, to which files in the options are relative.

    Raises:
        InvalidOptions: there is no such codec, or an option is unknown or out of range.
    """
    if name not in CODECS:
        raise InvalidOptions("codec", f"{name!r} is none of {', '.join(CODECS)}")
    codec: Codec = CODECS[name].from_options(options, folder)
    return codec
