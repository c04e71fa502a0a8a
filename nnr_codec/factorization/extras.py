"""Tensors without a data unit: empty ones, and those that share another's values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import dtype_of
from .map_checks import (
    MapError,
    check_keys,
    check_name,
    checked_dtype,
    checked_shape,
    shortened,
    typed,
)


@dataclass(frozen=True, slots=True)
class Extra:
    """A tensor without a data unit.

    Attributes:
        name: its name.
        after: name of the coded tensor or factored weight that it follows; None: it comes first.
        tied_to: name of the coded tensor or factored weight, not behind it, whose values it shares;
            None: it is empty, and has `dtype` and `shape`.
    """

    name: str
    after: str | None
    tied_to: str | None = None
    dtype: str = "float32"
    shape: tuple[int, ...] = (0,)

    def empty(self) -> npt.NDArray[Any]:
        """Return the empty tensor."""
        return np.zeros(self.shape, dtype_of(self.dtype))

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the map."""
        after = {} if self.after is None else {"after": self.after}
        empty = {"dtype": self.dtype, "shape": list(self.shape)}
        content = empty if self.tied_to is None else {"tied_to": self.tied_to}
        return {"name": self.name, **after, **content}


def parse_extra(entry: Any, max_dimensions: int) -> Extra:
    """Read an entry of the map's extras.

    Raises:
        MapError: it is damaged.
    """
    typed(entry, dict, "extras")
    name = typed(entry.get("name"), str, "name")
    check_name(name)
    after = entry.get("after")
    if after is not None:
        typed(after, str, "after")
    if "tied_to" in entry:
        check_keys(entry, {"name", "after", "tied_to"}, name)
        return Extra(name, after, typed(entry["tied_to"], str, "tied_to"))
    check_keys(entry, {"name", "after", "dtype", "shape"}, name)
    shape = checked_shape(entry.get("shape"), max_dimensions)
    if math.prod(shape) != 0:
        raise MapError(f"{shortened(name)} has no data unit and is not empty")
    return Extra(name, after, None, checked_dtype(entry.get("dtype")), shape)
