"""What the model map says of factored weights, and its checks against the tensors of a stream.

spec/model_map.md, "Factored weights", has the definition of every key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import LimitExceeded
from ..model import dtype_of, is_signed_float
from ..options import DecodeLimits
from .factor_tracker import FactorTracker
from .forms import FORMS, FactoredWeight
from .map_checks import (
    MapError,
    check_keys,
    check_name,
    checked_dtype,
    checked_shape,
    shortened,
    typed,
)

_MAX_FACTORS = 4  # of any form


@dataclass(frozen=True, slots=True)
class Factorization:
    """How a weight is made of coded tensors.

    Attributes:
        form: its word, a key of ``FORMS``.
        shape: dimensions of the weight, none of them 0.
        factors: names of the coded tensors, in the order of the form, all different.
        dtype: element type of the weight, a floating-point one, by the name of
            ``nnr_codec.model.dtype_of``.
    """

    form: str
    shape: tuple[int, ...]
    factors: tuple[str, ...]
    dtype: str = "float32"

    @property
    def elements(self) -> int:
        """Number of elements of the weight."""
        return math.prod(self.shape)

    def ranks(self, factor_shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Return the ranks that factors of these shapes have.

        Raises:
            MapError: they are not those of the form.
        """
        try:
            return FORMS[self.form].ranks_of(self.shape, factor_shapes)
        except ValueError as error:
            raise MapError(str(error)) from None

    def weight(self, factors: Sequence[npt.NDArray[Any]]) -> FactoredWeight:
        """Return the factored weight of these factors.

        Raises:
            MapError: they are not of the shapes that the form has.
        """
        try:
            return FORMS[self.form](self.shape, tuple(factors))
        except ValueError as error:
            raise MapError(str(error)) from None

    def dense(self, factors: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Return the weight that these factors make, of `shape` and `dtype`.

        Raises:
            MapError: they are not of the shapes that the form has.
        """
        values = self.weight(factors).to_dense()
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(dtype_of(self.dtype), copy=False)

    def outlined(self) -> npt.NDArray[Any]:
        """Return what stands for the weight without values: zeros that take no memory."""
        return np.broadcast_to(np.zeros((), dtype_of(self.dtype)), self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the map."""
        dtype = {} if self.dtype == "float32" else {"dtype": self.dtype}
        shape, factors = list(self.shape), list(self.factors)
        return {"form": self.form, "shape": shape, "factors": factors, **dtype}


def parse_factorization(name: str, data: Any, max_dimensions: int) -> Factorization:
    """Read the entry of weight `name`.

    Raises:
        MapError: it is damaged.
    """
    check_name(name)
    typed(data, dict, name)
    check_keys(data, {"form", "shape", "factors", "dtype"}, name)
    form = typed(data.get("form"), str, "form")
    if form not in FORMS:
        raise MapError(f"{shortened(name)}: unknown form {shortened(form)}")
    shape = checked_shape(data.get("shape"), max_dimensions)
    if 0 in shape:
        raise MapError(f"{shortened(name)}: a dimension is 0")
    listed = typed(data.get("factors"), list, "factors")
    factors = tuple(typed(factor, str, "factors") for factor in listed)
    if not 1 < len(factors) <= _MAX_FACTORS or len(set(factors)) != len(factors):
        raise MapError(f"{shortened(name)}: {len(factors)} factors, or one of them twice")
    dtype = checked_dtype(data.get("dtype", "float32"))
    if not is_signed_float(dtype_of(dtype)):
        raise MapError(f"{shortened(name)}: a weight of {dtype}")
    return Factorization(form, shape, factors, dtype)


def factors_of(factorizations: Mapping[str, Factorization]) -> dict[str, tuple[str, ...]]:
    """Return the names of each weight's factors."""
    return {name: entry.factors for name, entry in factorizations.items()}


class FactorChecks:
    """Checks the factors of a stream by their headers, before anything is allocated."""

    def __init__(self, factorizations: Mapping[str, Factorization], limits: DecodeLimits) -> None:
        """Check the sizes of the weights.

        Raises:
            LimitExceeded: a weight has more elements than a tensor may have.
        """
        self._factorizations = factorizations
        self._shapes = FactorTracker[tuple[int, ...]](factors_of(factorizations))
        self._limits = limits
        self._operations = 0  # of all products so far
        for entry in factorizations.values():
            self._check("max_elements_per_tensor", entry.elements)

    def __contains__(self, name: str) -> bool:
        """Whether coded tensor `name` is a factor."""
        return name in self._shapes

    def note(self, name: str, shape: tuple[int, ...]) -> None:
        """Note the shape of a factor; with the last one of a weight, all of them are compared.

        Raises:
            MapError: they do not fit together.
            LimitExceeded: their product takes more work than is allowed.
        """
        for weight in self._shapes.add(name, shape):
            entry = self._factorizations[weight]
            try:
                ranks = entry.ranks(self._shapes.release(weight))
            except MapError as error:
                raise MapError(f"{shortened(weight)}: {error}") from None
            self.count(FORMS[entry.form].product_operations(entry.shape, ranks))

    def count(self, operations: int) -> None:
        """Count the multiplications of a product.

        Raises:
            LimitExceeded: they are more than is allowed, alone or with those before.
        """
        self._operations += operations
        self._check("max_product_operations", operations)
        # A shared factor makes work for each of its weights.
        self._check("max_all_product_operations", self._operations)

    def _check(self, limit: str, value: int) -> None:
        allowed = getattr(self._limits, limit)
        if value > allowed:
            raise LimitExceeded(limit, value, allowed)
