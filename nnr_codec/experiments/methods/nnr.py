"""This package's codec, with the options of ``EncodeOptions``."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ... import decode, encode
from ... import open as open_stream
from ...calibration.moments import Calibration
from ...errors import InvalidOptions, NnrWarning
from ...options import PRESETS, EncodeOptions
from ...training.corrections import Corrections
from ..checked_table import options_of
from ..fingerprints import codec_fingerprint
from ..measures.yardsticks import yardsticks
from .ablation import PARTS, corrections_without, without
from .base import Arrays, Decoded, Encoded


@dataclass(frozen=True)
class NnrCodec:
    """The codec at one operating point.

    Attributes:
        options: of the encoder.
        calibration_stride: every n-th of the subject's calibration samples is looked at, from the
            first on, for the moments of the layers' inputs; None: the data are not looked at.
        calibration_without: parts of `.ablation.PARTS` that are taken away, to measure what they
            bring.
        quality: of as many quality layers as the options have, how many are there; None: all.
    """

    options: EncodeOptions
    calibration_stride: int | None = None
    calibration_without: tuple[str, ...] = ()
    quality: int | None = None

    def __post_init__(self) -> None:
        """Raise InvalidOptions if the stride is no whole number of 1 or more, or a part is none."""
        stride = self.calibration_stride
        if stride is not None and (type(stride) is not int or stride < 1):
            reason = f"{stride!r} is not a whole number of 1 or more"
            raise InvalidOptions("calibration_stride", reason)
        for part in self.calibration_without:
            if part not in list(PARTS):  # of any type
                reason = f"{part!r} is none of {', '.join(PARTS)}"
                raise InvalidOptions("calibration_without", reason)
        if self.calibration_without and stride is None:
            raise InvalidOptions("calibration_without", "has no effect without calibration_stride")
        layers = self.options.quality_layers
        if self.quality is not None and self.quality not in range(1, layers + 1):
            raise InvalidOptions("quality", f"{self.quality!r} is not from 1 to {layers}")

    @classmethod
    def from_options(cls, values: Mapping[str, Any], folder: Path) -> NnrCodec:
        """Return the codec with a plan's options; InvalidOptions if one is wrong.

        They are ``preset``, ``calibration_stride``, ``calibration_without``, ``quality``, and the
        fields of ``EncodeOptions``.
        """
        given = dict(values)
        preset = given.pop("preset", "default")
        EncodeOptions.preset(preset)  # refuses an unknown one
        stride = given.pop("calibration_stride", None)
        parts = given.pop("calibration_without", [])
        if not isinstance(parts, list):
            raise InvalidOptions("calibration_without", f"{parts!r} is not a list")
        quality = given.pop("quality", None)
        options = options_of(EncodeOptions, {**PRESETS[preset], **given})
        return cls(options, stride, tuple(parts), quality)

    def encode(
        self,
        tensors: Arrays,
        calibration: Calibration | None = None,
        corrector: Corrections | None = None,
    ) -> Encoded:
        """Encode with one thread; raises what ``nnr_codec.encode`` raises."""
        if calibration is not None:
            calibration = without(calibration, self.calibration_without)
        corrector = corrections_without(corrector, self.calibration_without)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NnrWarning)  # what is lost is what a plan measures
            result = encode(
                tensors, options=self.options, calibration=calibration, corrector=corrector
            )
        data, report = self._wanted(result.data or b""), result.report
        parts = breakdown(data, self.quality)
        # What refines a layer cannot be decoded by itself.
        sizes = {} if self.options.quality_layers > 1 else yardsticks(data)
        return Encoded(data, report.seconds, parts, sizes, report.unmatched)

    def _wanted(self, data: bytes) -> bytes:
        """Return the first quality layers."""
        if self.quality is None:
            return data
        with open_stream(data) as stream:
            return data[: sum(stream.info().quality_layers[: self.quality])]

    def decode(self, data: bytes) -> Decoded:
        """Decode with one thread; raises what ``nnr_codec.decode`` raises."""
        return decoded(data, self.quality)

    def identity(self) -> dict[str, Any]:
        """Return the options, and the fingerprint of the codec's files."""
        return {
            "codec": "nnr",
            "options": asdict(self.options),
            "calibration_stride": self.calibration_stride,
            "calibration_without": self.calibration_without,
            "quality": self.quality,
            "version": codec_fingerprint(),
        }


def decoded(data: bytes, quality: int | None) -> Decoded:
    """Decode a stream with one thread; raises what ``nnr_codec.decode`` raises."""
    start = time.perf_counter()
    tensors = decode(data, quality=quality)
    seconds = time.perf_counter() - start
    with open_stream(data, quality=quality) as stream:
        return Decoded(tensors, seconds, data if stream.factorizations else None)


def breakdown(data: bytes, quality: int | None) -> dict[str, int]:
    """Return the stream's bytes by kind of data unit, and those of all other units."""
    with open_stream(data, quality=quality) as stream:
        info = stream.info()
    parts = Counter({"headers": info.header_bytes})
    for tensor in info.tensors:
        parts[tensor.kind] += tensor.bytes
    return {part: count for part, count in sorted(parts.items()) if count}
