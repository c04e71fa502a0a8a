"""Choices for a whole stream: it is encoded more than once, and one of the streams is kept."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO

from ..errors import InvalidOptions, QuantizationOverflow
from ..options import EncodeOptions
from ..report import EncodeReport

_IN_MEMORY = 1 << 20
"""Bytes of a stream beyond which it waits in a temporary file."""

_MAX_GUESSES = 6
"""Streams after which the offset is found by halving, lest a strange model take hundreds."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A whole stream that was encoded, and may be kept.

    Attributes:
        file: the stream.
        report: what there is to say of it.
        skippable_bytes: about what row skipping would have saved, had the profile allowed it.
    """

    file: BinaryIO
    report: EncodeReport
    skippable_bytes: float = 0.0

    def copy_to(self, output: BinaryIO) -> None:
        """Write the stream into another file."""
        self.file.seek(0)
        shutil.copyfileobj(self.file, output)


Encoding = Callable[[EncodeOptions], Draft]


def draft_file() -> BinaryIO:
    """Return a file for a draft, which goes when it is closed."""
    return tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # type: ignore[return-value]


def smaller_profile(encode: Encoding, options: EncodeOptions) -> Draft:
    """Encode, and once more in profile 1 if its row skipping promises more than it costs."""
    first = encode(options)
    if first.skippable_bytes <= 0:
        return first
    second = encode(replace(options, profile=1))
    is_smaller = second.report.bytes < first.report.bytes
    kept, dropped = (second, first) if is_smaller else (first, second)
    dropped.file.close()
    return kept


def within_target(
    encode: Encoding, options: EncodeOptions, original_bytes: int, quantizes: bool
) -> Draft:
    """Encode with the least offset of all qp at which the stream is within the target size.

    Args:
        encode: makes a stream.
        options: with a target size.
        original_bytes: bytes of the model, of which the target may be a fraction.
        quantizes: whether any tensor is quantized; else no offset changes anything.

    Raises:
        InvalidOptions: the coarsest quantization is not enough, or nothing is quantized.
    """
    target = options.target_size or 0
    allowed = int(target * original_bytes) if isinstance(target, float) else target
    lowest, highest = options.offset_range() if quantizes else (0, 0)
    exceeds, fits = lowest - 1, highest + 1  # offsets next to which the answer lies
    sizes: dict[int, int] = {}
    best: Draft | None = None
    offset = min(max(0, lowest), highest)
    while fits - exceeds > 1:
        draft = _encoded(encode, options, offset)
        sizes[offset] = draft.report.bytes
        if draft.report.bytes <= allowed:
            dropped, best, fits = best, draft, offset
        else:
            dropped, exceeds = draft, offset
        if dropped is not None:
            dropped.file.close()
        bytes_per_step = max(draft.report.elements, 1) / 8 / (1 << options.qp_density)
        offset = _next_offset(sizes, allowed, exceeds, fits, bytes_per_step)
    if best is None:
        least = "the coarsest quantization" if quantizes else "nothing is quantized: the stream"
        reason = f"{allowed} bytes cannot be reached: {least} takes {sizes[highest]}"
        raise InvalidOptions("target_size", reason)
    return replace(best, report=replace(best.report, qp_offset=fits, encodings=len(sizes)))


def _encoded(encode: Encoding, options: EncodeOptions, offset: int) -> Draft:
    try:
        return encode(options.with_offset(offset))
    except QuantizationOverflow as error:
        reason = f"cannot be reached: with a qp offset of {offset}, tensor {error}"
        raise InvalidOptions("target_size", reason) from None


def _next_offset(
    sizes: dict[int, int], allowed: int, exceeds: int, fits: int, bytes_per_step: float
) -> int:
    """Return where to look next, between an offset that is too fine and one that fits.

    `bytes_per_step`: what a step of qp saves where all integers are large; it never saves more.
    """
    if len(sizes) >= _MAX_GUESSES:
        guess = (exceeds + fits) // 2
    elif exceeds in sizes and fits in sizes:
        # Between a line and an exponential: the steps are short soon.
        over, under = math.log(sizes[exceeds]), math.log(sizes[fits])
        part = (over - math.log(allowed)) / (over - under)
        guess = exceeds + round(part * (fits - exceeds))
    else:
        tried = sorted(sizes)
        if len(tried) > 1:  # the slope at the end that is nearer to the answer
            left, right = tried[-2:] if exceeds in sizes else tried[:2]
            slope = (sizes[left] - sizes[right]) / (right - left)
            bytes_per_step = min(max(slope, 1.0), bytes_per_step)
        nearest = tried[-1] if exceeds in sizes else tried[0]
        guess = nearest + round((sizes[nearest] - allowed) / bytes_per_step)
        guess += 1 if exceeds in sizes else -1
    return min(max(guess, exceeds + 1), fits - 1)
