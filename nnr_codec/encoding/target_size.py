"""Choices for a whole stream: it is encoded more than once, and one of the streams is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from ..errors import InvalidOptions, QuantizationOverflow
from ..model import Model
from ..options import EncodeOptions
from .model_mapping import is_quantized
from .stream_encoder import Draft

_LOOSE, _MAX_BEYOND, _ENOUGH = 0.97, 4, 10
"""Below which part of the target, how often, and before how many streams an offset is tried that is
finer than those that exceed."""

_MAX_SLOPE = 6.0
"""Of bytes over estimated ones, or the inverse, from one stream to another: two may be alike."""

DraftEncoder = Callable[[EncodeOptions], Draft]
"""Encodes the whole stream with these options."""

Estimate = Callable[[int], float]
"""About the bytes of what is quantized at an offset."""


def smaller_profile(encode: DraftEncoder, options: EncodeOptions) -> Draft:
    """Encode, and once more in profile 1 if its row skipping promises more than it costs."""
    first = encode(options)
    if options.profile != "auto" or not first.promises_rows:
        return first
    return _smaller(encode, options, first)


def _smaller(encode: DraftEncoder, options: EncodeOptions, first: Draft) -> Draft:
    """Encode in the profile that `first` does not have, and return the smaller of both."""
    try:
        second = encode(replace(options, profile=0 if first.profile else 1))
    except QuantizationOverflow:  # as the rates are others
        return first
    kept, dropped = (second, first) if second.bytes < first.bytes else (first, second)
    dropped.file.close()
    return kept


def within_target(
    encode: DraftEncoder, options: EncodeOptions, target: float, model: Model, estimate: Estimate
) -> Draft:
    """Encode with an offset of all qp at which the stream is within the target size, and is not
    with the next finer one: the least of all, unless sizes rise here and there.

    Profiles are compared where row skipping first promises something, and at the offset kept.

    Args:
        encode: makes a stream.
        options: of the encoder.
        target: bytes; or, if it is no integer, the fraction of the model's bytes.
        model: what is encoded.
        estimate: what to search by.

    Raises:
        InvalidOptions: the coarsest quantization is not enough, overflows, or nothing is quantized.
    """
    parameters = model.values()
    # Else no offset changes anything.
    quantizes = any(is_quantized(parameter, options) for parameter in parameters)
    original_bytes = sum(parameter.nbytes for parameter in parameters)
    allowed = int(target * original_bytes) if isinstance(target, float) else target
    lowest, highest = options.offset_range() if quantizes else (0, 0)
    sizes: dict[int, float] = {}
    best: Draft | None = None
    overflow: QuantizationOverflow | None = None  # with the coarsest quantization
    profile, compared = options.profile, lowest - 1
    for offset in _offsets(sizes, allowed, lowest, highest, estimate):
        chosen = replace(options.with_offset(offset), profile=profile)
        try:
            draft = encode(chosen)
        except QuantizationOverflow as error:
            sizes[offset] = math.inf
            overflow = error if offset == highest else overflow
            continue
        if profile == "auto" and draft.promises_rows:
            draft = _smaller(encode, chosen, draft)
            profile, compared = 1 if draft.profile else 0, offset
        draft.qp_offset = offset
        sizes[offset] = draft.bytes
        dropped, best = (best, draft) if draft.bytes <= allowed else (draft, best)
        if dropped is not None:
            dropped.file.close()
    if best is None:
        if overflow is not None:
            with overflow_beyond_target(highest):
                raise overflow
        least = "the coarsest quantization" if quantizes else "nothing is quantized: the stream"
        reason = f"{allowed} bytes cannot be reached: {least} takes {sizes[highest]}"
        raise InvalidOptions("target_size", reason)
    offset = best.qp_offset
    if profile != options.profile and offset != compared and (best.profile or best.promises_rows):
        best = _smaller(encode, options.with_offset(offset), best)
        best.qp_offset = offset
    return best


@contextmanager
def overflow_beyond_target(offset: int) -> Iterator[None]:
    """Say of quantization that overflows at this offset that the target size is not reached."""
    try:
        yield
    except QuantizationOverflow as error:
        reason = f"not reached: with a qp offset of {offset}, tensor {error}"
        raise InvalidOptions("target_size", reason) from None


def _offsets(
    sizes: Mapping[int, float], allowed: int, lowest: int, highest: int, estimate: Estimate
) -> Iterator[int]:
    """Yield where to encode next; `sizes`: bytes by offset, infinite where it overflows."""
    exceeds, fits = lowest - 1, highest + 1  # offsets next to which the answer lies
    for _ in range(1 + _MAX_BEYOND):
        widths = [math.inf, math.inf]
        while fits - exceeds > 1:
            widths.append(fits - exceeds if exceeds in sizes and fits in sizes else math.inf)
            is_slow = math.inf > widths[-3] < 4 * widths[-1] or sizes.get(fits) == math.inf
            guess = _next_offset(sizes, allowed, exceeds, fits, estimate)
            offset = (exceeds + fits) // 2 if is_slow else guess
            yield offset
            is_too_fine = allowed < sizes[offset] < math.inf
            exceeds, fits = (offset, fits) if is_too_fine else (exceeds, offset)
        finer = next(o for o in range(exceeds - 1, lowest - 3, -1) if o not in sizes)
        is_loose = sizes.get(fits, math.inf) < _LOOSE * allowed and finer >= lowest
        seems_to_fit = is_loose and sizes[fits] * estimate(finer) <= allowed * estimate(fits)
        if not seems_to_fit or len(sizes) >= _ENOUGH:
            break
        yield finer
        if sizes[finer] <= allowed:
            exceeds, fits = max((o for o in sizes if o < finer), default=lowest - 1), finer
    if min(sizes.values()) > allowed and highest not in sizes:
        yield highest  # what is so coarse may overflow no more


def _next_offset(
    sizes: Mapping[int, float], allowed: int, exceeds: int, fits: int, estimate: Estimate
) -> int:
    """Return where to look next, between an offset that is too fine and one that is coarse enough:
    the finest one that seems to fit, by the estimate on a line through the nearest streams."""
    sizes = {offset: size for offset, size in sizes.items() if size < math.inf}
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
