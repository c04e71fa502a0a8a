"""This package's codec, with the options of ``EncodeOptions``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ... import decode, encode
from ... import open as open_stream
from ...options import PRESETS, EncodeOptions
from ..checked_table import options_of
from ..fingerprints import codec_fingerprint
from ..yardsticks import yardsticks
from .base import Arrays, Decoded, Encoded


@dataclass(frozen=True)
class NnrCodec:
    """The codec at one operating point."""

    options: EncodeOptions

    @classmethod
    def from_options(cls, values: Mapping[str, Any], folder: Path) -> NnrCodec:
        """Return the codec with a plan's options: a preset, and fields of ``EncodeOptions``.

        Raises:
            InvalidOptions: an option is unknown or out of range.
        """
        given = dict(values)
        preset = given.pop("preset", "default")
        EncodeOptions.preset(preset)  # refuses an unknown one
        return cls(options_of(EncodeOptions, {**PRESETS[preset], **given}))

    def encode(self, tensors: Arrays) -> Encoded:
        """Encode with one thread; raises what ``nnr_codec.encode`` raises."""
        result = encode(tensors, options=self.options)
        data = result.data or b""
        return Encoded(data, result.report.seconds, _breakdown(data), yardsticks(data))

    def decode(self, data: bytes) -> Decoded:
        """Decode with one thread; raises what ``nnr_codec.decode`` raises."""
        start = time.perf_counter()
        tensors = decode(data)
        return Decoded(tensors, time.perf_counter() - start)

    def identity(self) -> dict[str, Any]:
        """Return the options, and the fingerprint of the codec's files."""
        return {"codec": "nnr", "options": asdict(self.options), "version": codec_fingerprint()}


def _breakdown(data: bytes) -> dict[str, int]:
    """Return the stream's bytes by kind of data unit, and those of all other units."""
    with open_stream(data) as stream:
        info = stream.info()
    parts = Counter({"headers": info.header_bytes})
    for tensor in info.tensors:
        parts[tensor.kind] += tensor.bytes
    return {part: count for part, count in sorted(parts.items()) if count}
