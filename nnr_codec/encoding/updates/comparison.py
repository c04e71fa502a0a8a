"""How a tensor of an update is coded: as a difference to that of the base, or as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ...decoding.updates.coded_piece import CodedPiece
from ...decoding.updates.open_stream import QuantizerStep
from ...model import Array, Parameter
from ...options import EncodeOptions
from ...quantize.integer_rate import estimated_bits, sampled
from ..exact import represent
from ..model_mapping import is_quantized
from ..tensor_quantizer import nominal_step
from .difference import FloatDifference, WordDifference, word_difference

_SURELY_SMALL = 0.25
"""Of a tensor's bits: a difference that takes less is not compared with the whole."""


@dataclass(frozen=True, slots=True)
class TensorComparison:
    """A tensor of a model, and what decoders have under its name.

    Attributes:
        new: the tensor.
        piece: that of the base; None: there is none.
        read: decodes the base's.
        options: of the encoder.
        old: the tensor that the base's was made of, if it is known.
        residual: what earlier updates did not carry of it, if it is known.
        is_needed: whether it needs a data unit, whatever its difference is.
    """

    new: Parameter
    piece: CodedPiece | None
    read: Any
    options: EncodeOptions
    old: Parameter | None = None
    residual: Parameter | None = None
    is_needed: bool = False

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return self.new.size

    def chosen(self) -> Parameter:
        """Return what is coded: a difference, or the tensor itself.

        Raises:
            InvalidModel: the tensor cannot be read.
            BitstreamError: the base is damaged.
        """
        new, piece = self.new, self.piece
        if piece is None or (piece.shape, piece.dtype) != (new.shape, new.dtype):
            return new
        values, base = new.read(), self.read()
        if is_quantized(new, self.options) and _is_subtractable(values, base):
            return self._of_floats(piece, values, base)
        return self._of_words(values, base)

    def _of_floats(self, piece: CodedPiece, values: Array, base: Array) -> Parameter:
        difference = FloatDifference(
            self.new.name,
            self.new.shape,
            np.dtype(np.float32),
            self.new.load,
            new=self.new,
            base=self._base(),
            may_be_left_out=not self.is_needed,
            base_step=piece.step(),
            old=self.old,
            residual=self.residual,
        )
        own = self.options.for_tensor(self.new.name)
        step = nominal_step(self.new, own)
        coarse = step * (1 + own.dq)
        if _may_overflow(values, 2 * coarse):  # a whole tensor is clipped, a sum cannot be
            return self.new
        moved = difference.beyond(QuantizerStep(step, own.dq))
        if not moved.any():
            return difference
        is_smaller = _quantized_bits(moved, coarse) <= _quantized_bits(values, coarse)
        return difference if is_smaller else self.new

    def _of_words(self, values: Array, base: Array) -> Parameter:
        """Return the smallest of what brings every bit back."""
        prices = {}
        for xor in (False, True):
            integers = word_difference(values, base, xor)
            if integers is not None:
                prices[xor] = estimated_bits(integers)[0] if integers.any() else 0.0
        if not prices:
            return self.new
        xor = min(prices, key=prices.__getitem__)
        if prices[xor] > _SURELY_SMALL * 8 * self.new.nbytes:
            own = self.options.for_tensor(self.new.name)
            if _exact_bits(values, own) < prices[xor]:
                return self.new
        return WordDifference(
            self.new.name,
            self.new.shape,
            np.dtype(np.int32),
            self.new.load,
            new=self.new,
            base=self._base(),
            may_be_left_out=not self.is_needed,
            xor=xor,
        )

    def _base(self) -> Parameter:
        return Parameter(self.new.name, self.new.shape, self.new.dtype, self.read)


def _is_subtractable(new: Array, base: Array) -> bool:
    """Whether both tensors and their difference are finite in binary32."""
    with np.errstate(over="ignore", invalid="ignore"):
        first, second = (values.astype(np.float32) for values in (new, base))
        return bool(
            np.isfinite(first).all()
            and np.isfinite(second).all()
            and np.isfinite(first - second).all()
        )


def _may_overflow(values: Array, error: float) -> bool:
    """Whether values with so much of an error may leave their type."""
    largest = float(np.abs(values.astype(np.float64)).max())
    return largest + error >= float(ml_dtypes.finfo(values.dtype).max)  # type: ignore[no-untyped-call]


def _quantized_bits(values: npt.NDArray[Any], step: float) -> float:
    """Return about what the integers of values take."""
    sample = sampled(values).astype(np.float64)
    integers = np.rint(np.clip(sample / step, -(2.0**40), 2.0**40))
    return estimated_bits(integers)[0] * values.size / sample.size


def _exact_bits(values: Array, options: EncodeOptions) -> float:
    """Return about what a tensor takes that comes back bit by bit."""
    found = represent(values, options.qp_density, bool(options.codebook))
    if found is not None:
        return found.bits
    sample = sampled(values).astype(np.int64)
    return estimated_bits(sample)[0] * values.size / sample.size
