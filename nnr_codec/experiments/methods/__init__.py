"""The methods that a plan can name as ``codec``, each a small module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import Codec
from .external import ExternalCodec
from .nnr import NnrCodec
from .simple import BytePlaneCodec, Float16Codec, IntegerCodec
from .trained import TrainedCodec

CODECS: Mapping[str, Any] = {
    "nnr": NnrCodec,
    "trained": TrainedCodec,
    "external": ExternalCodec,
    "int8": IntegerCodec,
    "fp16": Float16Codec,
    "byteplane": BytePlaneCodec,
}
"""Codecs by the names that plans give them, each with ``from_options(values, folder)``."""


def codec_from(name: str, options: Mapping[str, Any], folder: Path) -> Codec:
    """Return the codec `name` of `CODECS` with a plan's options; InvalidOptions if one is wrong.

    Files in the options are relative to `folder`.
    """
    codec: Codec = CODECS[name].from_options(options, folder)
    return codec
