"""The rule by which a coded tensor comes back: type, shape, what its integers stand for.

spec/model_map.md, "How a coded tensor comes back", has the definition of every key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import dtype_of, is_float
from .map_checks import MapError, check_keys, checked_dtype, checked_shape, shortened, typed
from .words import is_rotated, words_from_signed

MAX_TABLE = 2**16
"""Entries of a table of values."""

_LEAST_SCALE, _GREATEST_SCALE = 2.0**-126, 2.0**128  # of normal binary32 numbers
_MEANINGS = ("scale", "bits", "table", "low")
_KEYS = {"dtype", "shape", *_MEANINGS}


@dataclass(frozen=True, slots=True)
class TensorRule:
    """How a coded tensor comes back; None: as it is coded.

    Attributes:
        dtype: element type, by the name of ``nnr_codec.model.dtype_of``.
        shape: dimensions, of as many elements.
        scale: the integers times this are the values.
        bits: the integers are the values' bits, around this bias; with `low`: their high halves.
        table: name of the part that holds the values, of which the integers are indices.
        low: name of the part that holds the low halves of 64-bit values.
    """

    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    scale: float | None = None
    bits: int | None = None
    table: str | None = None
    low: str | None = None

    @property
    def part(self) -> str | None:
        """Name of the second coded tensor that it is made of, or None."""
        return self.low if self.table is None else self.table

    @property
    def meaning(self) -> str | None:
        """What its integers are: "scale", "table", "low" or "bits"; None: nothing but values."""
        keys = (key for key in ("scale", "table", "low", "bits") if getattr(self, key) is not None)
        return next(keys, None)

    def to_json(self) -> dict[str, Any]:
        """Return the keys that say something."""
        items = {key: getattr(self, key) for key in ("dtype", "shape", *_MEANINGS)}
        return {key: value for key, value in items.items() if value is not None}


def parse_tensor_rule(name: str, data: Any, max_dimensions: int) -> TensorRule:
    """Read the entry of tensor `name`.

    Raises:
        MapError: it is damaged.
    """
    typed(data, dict, name)
    check_keys(data, _KEYS, name)
    rule = TensorRule(
        checked_dtype(data["dtype"]) if "dtype" in data else None,
        checked_shape(data["shape"], max_dimensions) if "shape" in data else None,
        _scale(data["scale"]) if "scale" in data else None,
        typed(data["bits"], int, "bits") if "bits" in data else None,
        typed(data["table"], str, "table") if "table" in data else None,
        typed(data["low"], str, "low") if "low" in data else None,
    )
    _check_meaning(name, rule)
    return rule


def _scale(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and _LEAST_SCALE <= value < _GREATEST_SCALE:
        scale = float(value)
        if scale < _GREATEST_SCALE:  # to which whole numbers just below it are rounded
            return scale
    raise MapError(f"{shortened(value)} is no scale: a positive, normal binary32 number's size")


def _check_meaning(name: str, rule: TensorRule) -> None:
    """Check that an entry's keys go together."""
    keys = [key for key in _MEANINGS if getattr(rule, key) is not None]
    if not keys:
        return
    if keys not in (["scale"], ["table"], ["bits"], ["low"], ["bits", "low"]):
        raise MapError(f"{shortened(name)}: {' and '.join(keys)} exclude each other")
    if rule.dtype is None or rule.dtype == "bool":
        raise MapError(f"{shortened(name)}: {keys[0]} needs a dtype that is not bool")
    dtype = dtype_of(rule.dtype)
    if rule.scale is not None:
        fits = is_float(dtype)
    else:
        fits = (dtype.itemsize == 8) == (rule.low is not None)
    if not fits:
        raise MapError(f"{shortened(name)}: {keys[-1]} does not go with {dtype}")
    if rule.part == name:
        raise MapError(f"{shortened(name)} is a part of itself")
    word_bits = 8 * min(dtype.itemsize, 4)
    if rule.bits is not None and (type(rule.bits) is bool or not 0 <= rule.bits < 1 << word_bits):
        raise MapError(f"{shortened(name)}: {shortened(rule.bits)} is no bias of {word_bits} bits")


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
    if rule.shape is not None and math.prod(rule.shape) != values.size:
        raise MapError(f"{values.size} elements, not {rule.shape} as in the model map")
    if rule.dtype is not None:
        dtype = dtype_of(rule.dtype)
        if rule.meaning is None:
            values = _converted(values, dtype)
        else:
            values = _from_integers(rule, _integers(values), part, dtype)
    return values if rule.shape is None else values.reshape(rule.shape)


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


def _from_integers(
    rule: TensorRule,
    integers: npt.NDArray[np.int32],
    part: npt.NDArray[Any] | None,
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    """Turn integers into the values that they stand for."""
    if rule.scale is not None:
        return _values_on_grid(integers, rule.scale, dtype)
    if rule.part is None:
        return _words(rule, integers, dtype.itemsize, dtype).view(dtype)
    if part is None:
        raise MapError(f"{shortened(rule.part)} does not come before what it is a part of")
    second = _integers(part)
    if rule.table is not None:
        return _looked_up(integers, second, dtype)
    if second.shape != integers.shape:
        raise MapError(f"halves of the shapes {integers.shape} and {second.shape}")
    high = _words(rule, integers, 4, dtype).astype(np.uint64)
    high <<= np.uint64(32)  # in place: such tensors are large
    high |= second.view(np.uint32)
    return high.view(dtype)


def _values_on_grid(
    integers: npt.NDArray[np.int32], scale: float, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Return the values on a grid, all of which are finite."""
    ends = np.array([integers.min(), integers.max()], np.int32)
    if not np.isfinite(scaled(ends, scale, dtype)).all():
        raise MapError(f"a multiple of the scale {scale:g} is beyond {dtype}")
    return scaled(integers, scale, dtype)


def scaled(integers: npt.NDArray[np.int32], scale: float, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Multiply in binary64, round to binary32 (but for float64), then to `dtype`."""
    with np.errstate(all="ignore"):
        product = integers.astype(np.float64) * np.float64(scale)
        return product if dtype == np.float64 else product.astype(np.float32).astype(dtype)


def _words(
    rule: TensorRule, integers: npt.NDArray[np.int32], itemsize: int, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    if rule.bits is None:
        return integers.view(np.uint32)
    try:
        return words_from_signed(integers, rule.bits, is_rotated(dtype), itemsize)
    except ValueError as error:
        raise MapError(str(error)) from None


def _looked_up(
    indices: npt.NDArray[np.int32], differences: npt.NDArray[np.int32], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Look indices up, negative ones from the table's end."""
    size = differences.size
    if differences.ndim != 1 or size > MAX_TABLE:
        raise MapError(f"a table of shape {differences.shape}; at most {MAX_TABLE} entries")
    if int(indices.min()) < -size or int(indices.max()) >= size:
        raise MapError("an index outside the table")
    words = np.cumsum(differences.view(np.uint32), dtype=np.uint32)  # modulo 2**32
    table = words.astype(f"u{dtype.itemsize}").view(dtype)
    values: npt.NDArray[Any] = table[indices]
    return values
