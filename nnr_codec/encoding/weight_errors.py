"""Errors of weights that travel as factors: of what decoders make of them, as dense weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ..errors import QuantizationOverflow
from ..factorization.factor_tracker import FactorTracker
from ..quantize.distortion import Distortion, weight_error

if TYPE_CHECKING:
    from .factor_transport import CarriedWeight


class WeightErrors:
    """Measures each weight as soon as the last of its factors is coded.

    A factor is kept until the last weight that is made of it has been measured.

    Attributes:
        found: errors of the decoded weights, by name.
    """

    def __init__(self, carried: Mapping[str, CarriedWeight]) -> None:
        """`carried`: the weights that travel as factors, by name."""
        self.found: dict[str, Distortion] = {}
        self._carried = carried
        factors = {name: weight.entry.factors for name, weight in carried.items()}
        self._factors = FactorTracker[npt.NDArray[Any]](factors)

    def take(self, factors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take factors by name, as they are decoded.

        Raises:
            QuantizationOverflow: a weight that they make has values beyond its element type, which
                it would not have without quantization.
        """
        for name, values in factors.items():
            for weight in self._factors.add(name, values):
                made = self._carried[weight].entry.dense(self._factors.release(weight))
                self.found[weight] = self._error(weight, made)

    def _error(self, name: str, made: npt.NDArray[Any]) -> Distortion:
        carried = self._carried[name]
        found = weight_error(carried.weight.read(), made)
        if found.overflows and not carried.error.overflows:
            reason = f"its quantized factors make values too large for {carried.weight.dtype}"
            raise QuantizationOverflow(name, reason)
        return found
