"""Choices for a whole stream: it is encoded more than once, and one of the streams is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


def within_target(
    encode: DraftEncoder,
    options: EncodeOptions,
    model: Model,
    estimate: Callable[[int], float],
) -> WithinTarget:
    """Encode with the least offset of all qp at which the stream is within the target size.

    Args:
        encode: makes a stream.
        options: with a target size.
        model: what is encoded.
        estimate: about the bytes of what is quantized at an offset.

    Raises:
        InvalidOptions: the coarsest quantization is not enough, overflows, or nothing is quantized.
    """
    parameters = model.values()
    # Else no offset changes anything.
    quantizes = any(is_quantized(parameter, options) for parameter in parameters)
    target = options.target_size or 0
    original_bytes = sum(parameter.nbytes for parameter in parameters)
    allowed = int(target * original_bytes) if isinstance(target, float) else target
    lowest, highest = options.offset_range() if quantizes else (0, 0)
    exceeds, fits = lowest - 1, highest + 1  # offsets next to which the answer lies
    sizes: dict[int, int] = {}
    best: Draft | None = None
    overflow: QuantizationOverflow | None = None  # at the offset `fits`
    while fits - exceeds > 1:
        offset = _next_offset(sizes, allowed, exceeds, fits, estimate)
        try:
            draft = encode(options.with_offset(offset))
        except QuantizationOverflow as error:
            overflow, fits = error, offset
            continue
        sizes[offset] = draft.bytes
        if draft.bytes <= allowed:
            dropped, best, fits, overflow = best, draft, offset, None
        else:
            dropped, exceeds = draft, offset
        if dropped is not None:
            dropped.file.close()
    if best is not None:
        return WithinTarget(
            best, min(o for o, size in sizes.items() if size <= allowed), len(sizes)
        )
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
    the finest one that seems to fit, by the estimate and what it misses at the nearest stream."""
    low, high = exceeds + 1, fits - 1
    if len(sizes) >= _MAX_GUESSES:
        return (low + high) // 2
    missed = 0.0
    if sizes:
        nearest = min(sizes, key=lambda offset: abs(sizes[offset] - allowed))
        missed = sizes[nearest] - estimate(nearest)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if estimate(middle) + missed <= allowed else (middle + 1, high)
    return low
