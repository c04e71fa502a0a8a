"""Choices for a whole stream: it is encoded more than once, and one of the streams is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..errors import InvalidOptions, QuantizationOverflow
from ..model import Model
from ..options import EncodeOptions
from .model_mapping import is_quantized
from .stream_encoder import Draft

_MAX_GUESSES = 6
"""Streams after which the offset is found by halving, lest a strange model take hundreds."""

DraftEncoder = Callable[[EncodeOptions], Draft]
"""Encodes the whole stream with these options."""


@dataclass(frozen=True, slots=True)
class WithinTarget:
    """The stream that is within a target size.

    Attributes:
        draft: the stream.
        qp_offset: what was added to every qp.
        encodings: streams that were made to find it.
    """

    draft: Draft
    qp_offset: int
    encodings: int


def smaller_profile(encode: DraftEncoder, options: EncodeOptions) -> Draft:
    """Encode, and once more in profile 1 if its row skipping promises more than it costs."""
    first = encode(options)
    if options.profile != "auto" or first.profile == 1 or first.skippable_bytes <= 0:
        return first
    second = encode(replace(options, profile=1))
    kept, dropped = (second, first) if second.bytes < first.bytes else (first, second)
    dropped.file.close()
    return kept


def within_target(encode: DraftEncoder, options: EncodeOptions, model: Model) -> WithinTarget:
    """Encode with the least offset of all qp at which the stream is within the target size.

    Args:
        encode: makes a stream.
        options: with a target size.
        model: what is encoded.

    Raises:
        InvalidOptions: the coarsest quantization is not enough, or nothing is quantized.
    """
    parameters = model.values()
    # Else no offset changes anything.
    quantizes = any(is_quantized(parameter, options) for parameter in parameters)
    coded = sum(p.size for p in parameters if p.tied_to is None)
    bytes_per_step = max(coded, 1) / 8 / (1 << options.qp_density)
    target = options.target_size or 0
    original_bytes = sum(parameter.nbytes for parameter in parameters)
    allowed = int(target * original_bytes) if isinstance(target, float) else target
    lowest, highest = options.offset_range() if quantizes else (0, 0)
    exceeds, fits = lowest - 1, highest + 1  # offsets next to which the answer lies
    sizes: dict[int, int] = {}
    best: Draft | None = None
    offset = min(max(0, lowest), highest)
    while fits - exceeds > 1:
        with overflow_beyond_target(offset):
            draft = encode(options.with_offset(offset))
        sizes[offset] = draft.bytes
        if draft.bytes <= allowed:
            dropped, best, fits = best, draft, offset
        else:
            dropped, exceeds = draft, offset
        if dropped is not None:
            dropped.file.close()
        offset = _next_offset(sizes, allowed, exceeds, fits, bytes_per_step)
    if best is None:
        least = "the coarsest quantization" if quantizes else "nothing is quantized: the stream"
        reason = f"{allowed} bytes cannot be reached: {least} takes {sizes[highest]}"
        raise InvalidOptions("target_size", reason)
    return WithinTarget(best, fits, len(sizes))


@contextmanager
def overflow_beyond_target(offset: int) -> Iterator[None]:
    """Say of quantization that overflows at this offset that the target size cannot be reached."""
    try:
        yield
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
