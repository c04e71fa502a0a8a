"""The rule by which a coded tensor comes back: type, shape, what its integers stand for.

spec/model_map.md, "How a coded tensor comes back", has the definition of every key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import dtype_of, is_float
from .grid_meanings import Grid, GroupedGrid
from .map_checks import MapError, check_keys, checked_dtype, checked_shape, shortened, typed
from .meanings import Meaning
from .word_meanings import Bits, Fields, Halves, Mantissas, Table

_MEANINGS: dict[str, type[Meaning]] = {
    **{"scale": Grid, "scales": GroupedGrid, "table": Table, "low": Halves},
    **{"mantissas": Mantissas, "fields": Fields, "bits": Bits},
}
"""By the key that tells each; where one has several of these keys, by the first."""

_KEYS = {"dtype", "shape"}.union(*(meaning.map_keys() for meaning in _MEANINGS.values()))


@dataclass(frozen=True, slots=True)
class TensorRule:
    """How a coded tensor comes back; None: as it is coded.

    Attributes:
        dtype: element type, by the name of ``nnr_codec.model.dtype_of``.
        shape: dimensions, of as many elements.
        meaning: what its integers stand for.
    """

    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    meaning: Meaning | None = None

    @property
    def part(self) -> str | None:
        """Name of the second coded tensor that it is made of, or None."""
        return None if self.meaning is None else self.meaning.part

    @property
    def integers_per_value(self) -> int:
        """How many integers are coded for each of its values."""
        if not isinstance(self.meaning, Fields) or self.dtype is None:
            return 1
        return self.meaning.integers_in(dtype_of(self.dtype))

    def check_elements(self, coded: int) -> None:
        """Check that a tensor of so many coded elements has its shape.

        Raises:
            MapError: it has not.
        """
        if self.shape is not None and math.prod(self.shape) * self.integers_per_value != coded:
            raise MapError(f"{coded} elements, not {self.shape} as in the model map")

    def to_json(self) -> dict[str, Any]:
        """Return the keys that say something."""
        items = {"dtype": self.dtype, "shape": self.shape}
        said = {key: value for key, value in items.items() if value is not None}
        return said if self.meaning is None else said | self.meaning.to_json()


def parse_tensor_rule(name: str, data: Any, max_dimensions: int) -> TensorRule:
    """Read the entry of tensor `name`.

    Raises:
        MapError: it is damaged.
    """
    typed(data, dict, name)
    check_keys(data, _KEYS, name)
    dtype = checked_dtype(data["dtype"]) if "dtype" in data else None
    shape = checked_shape(data["shape"], max_dimensions) if "shape" in data else None
    rule = TensorRule(dtype, shape, _meaning(name, data))
    _check_meaning(name, rule)
    return rule


def _meaning(name: str, data: Mapping[str, Any]) -> Meaning | None:
    keys = [key for key in data if key not in ("dtype", "shape")]
    telling = [key for key in _MEANINGS if key in keys]
    if not telling:
        if keys:
            raise MapError(f"{shortened(name)}: {keys[0]} alone says nothing")
        return None
    kind = _MEANINGS[telling[0]]
    others = [key for key in keys if key not in kind.map_keys()]
    if others:
        raise MapError(f"{shortened(name)}: {telling[0]} and {others[0]} exclude each other")
    return kind.parse(data)


def _check_meaning(name: str, rule: TensorRule) -> None:
    """Check that what an entry says goes together."""
    if rule.meaning is None:
        return
    if rule.dtype is None or rule.dtype == "bool":
        raise MapError(f"{shortened(name)}: {rule.meaning.kind} needs a dtype that is not bool")
    try:
        rule.meaning.check(dtype_of(rule.dtype))
    except MapError as error:
        raise MapError(f"{shortened(name)}: {error}") from None
    if rule.part == name:
        raise MapError(f"{shortened(name)} is a part of itself")
    if isinstance(rule.meaning, Fields) and rule.shape is None:
        raise MapError(f"{shortened(name)}: fields need a shape")


def apply_rule(
    rule: TensorRule, values: npt.NDArray[Any], part: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """Return a tensor as the map has it.

    Args:
        rule: what the map says.
        values: the tensor as it is coded.
        part: its second tensor, if `rule.part` names one.

    Raises:
        MapError: the entry does not fit them.
    """
    rule.check_elements(values.size)
    shape = values.shape if rule.shape is None else rule.shape
    if rule.dtype is not None:
        dtype = dtype_of(rule.dtype)
        if rule.meaning is None:
            values = _converted(values, dtype)
        else:
            second = None if part is None else _integers(part)
            values = rule.meaning.values(_integers(values), second, dtype)
    return values.reshape(shape)


def _converted(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if is_float(dtype) != (values.dtype.kind == "f"):
        raise MapError(f"the model map wants {dtype}, the unit holds {values.dtype}")
    if not is_float(dtype):
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if int(values.min()) < low or int(values.max()) > high:
            raise MapError(f"an integer does not fit {dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs
        return values.astype(dtype)


def _integers(values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    if values.dtype != np.int32:
        raise MapError(f"the model map wants integers of 32 bits, the unit holds {values.dtype}")
    return values
