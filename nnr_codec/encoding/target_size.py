"""Choices for a whole stream: it is encoded more than once, and one of the streams is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from ..errors import InvalidOptions, QuantizationOverflow
from ..model import Model
from ..options import EncodeOptions
from .model_mapping import is_quantized
from .stream_encoder import Draft

_MAX_GUESSES = 6
"""Streams after which the range of offsets is halved, which bounds their number."""

_MAX_SLOPE = 4.0
"""Of bytes over estimated ones, or the inverse, from one stream to another: two may be alike."""

DraftEncoder = Callable[[EncodeOptions], Draft]
"""Encodes the whole stream with these options."""


def smaller_profile(encode: DraftEncoder, options: EncodeOptions) -> Draft:
    """Encode, and once more in profile 1 if its row skipping promises more than it costs."""
    first = encode(options)
    if options.profile != "auto" or first.profile == 1 or first.skippable_bytes <= 0:
        return first
    try:
        second = encode(replace(options, profile=1))
    except QuantizationOverflow:  # as the rates are others
        return first
    kept, dropped = (second, first) if second.bytes < first.bytes else (first, second)
    dropped.file.close()
    return kept


def within_target(
    encode: DraftEncoder,
    options: EncodeOptions,
    target: float,
    model: Model,
    estimate: Callable[[int], float],
) -> Draft:
    """Encode with the least offset of all qp at which the stream is within the target size.

    Args:
        encode: makes a stream.
        options: of the encoder.
        target: bytes; or, if it is no integer, the fraction of the model's bytes.
        model: what is encoded.
        estimate: about the bytes of what is quantized at an offset.

    Raises:
        InvalidOptions: the coarsest quantization is not enough, overflows, or nothing is quantized.
    """
    parameters = model.values()
    # Else no offset changes anything.
    quantizes = any(is_quantized(parameter, options) for parameter in parameters)
    original_bytes = sum(parameter.nbytes for parameter in parameters)
    allowed = int(target * original_bytes) if isinstance(target, float) else target
    lowest, highest = options.offset_range() if quantizes else (0, 0)
    exceeds, fits = lowest - 1, highest + 1  # offsets next to which the answer lies
    sizes: dict[int, int] = {}
    best: Draft | None = None
    overflow: QuantizationOverflow | None = None  # at the offset `fits`
    encodings = 0
    while fits - exceeds > 1:
        if overflow is not None or encodings >= _MAX_GUESSES:
            offset = (exceeds + fits) // 2
        else:
            offset = _next_offset(sizes, allowed, exceeds, fits, estimate)
        encodings += 1
        try:
            draft = encode(options.with_offset(offset))
        except QuantizationOverflow as error:
            overflow, fits = error, offset
            continue
        draft.qp_offset = offset
        sizes[offset] = draft.bytes
        if draft.bytes <= allowed:
            dropped, best, fits, overflow = best, draft, offset, None
        else:
            dropped, exceeds = draft, offset
        if dropped is not None:
            dropped.file.close()
    if best is not None:
        best.encodings = encodings
        return best
    if overflow is not None:
        with overflow_beyond_target(fits):
            raise overflow
    least = "the coarsest quantization" if quantizes else "nothing is quantized: the stream"
    reason = f"{allowed} bytes cannot be reached: {least} takes {sizes[highest]}"
    raise InvalidOptions("target_size", reason)


@contextmanager
def overflow_beyond_target(offset: int) -> Iterator[None]:
    """Say of quantization that overflows at this offset that the target size cannot be reached."""
    try:
        yield
    except QuantizationOverflow as error:
        reason = f"cannot be reached: with a qp offset of {offset}, tensor {error}"
        raise InvalidOptions("target_size", reason) from None


def _next_offset(
    sizes: Mapping[int, int],
    allowed: int,
    exceeds: int,
    fits: int,
    estimate: Callable[[int], float],
) -> int:
    """Return where to look next, between an offset that is too fine and one that is coarse enough:
    the finest one that seems to fit, by the estimate on a line through the nearest streams."""
    is_between = exceeds in sizes and fits in sizes
    nearest = sorted(sizes, key=lambda offset: abs(sizes[offset] - allowed))[:2]
    first, *second = (exceeds, fits) if is_between else nearest or (0,)
    slope = 1.0
    if second and (rise := estimate(first) - estimate(*second)):
        slope = (sizes[first] - sizes[second[0]]) / rise
        slope = slope if is_between else min(max(slope, 1 / _MAX_SLOPE), _MAX_SLOPE)
    origin = sizes[first] - slope * estimate(first) if sizes else 0.0
    low, high = exceeds + 1, fits - 1
    while low < high:
        middle = (low + high) // 2
        seems_to_fit = origin + slope * estimate(middle) <= allowed
        low, high = (low, middle) if seems_to_fit else (middle + 1, high)
    # Guesses that all miss on one side are each closer than the estimate is exact: go beyond.
    beyond = 4 ** (len(sizes) - 2) if len(sizes) > 1 else 0
    if (exceeds in sizes) != (fits in sizes):
        low += beyond if exceeds in sizes else -beyond
    return min(max(low, exceeds + 1), fits - 1)
