"""Checks of the model map's JSON: types, keys, names, element types, shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..model import dtype_of

MAX_PRODUCT = 2**40
"""Of the dimensions that are not 0, of an empty tensor too."""

_MAX_NAME_BYTES = 4096
_ARRAY_DIMENSIONS = 32  # that every numpy has


class MapError(ValueError):
    """A text is no model map, or a map does not fit its stream."""


def typed(value: Any, kind: type, what: str) -> Any:
    """Return `value`, which must be a `kind`."""
    if not isinstance(value, kind):
        raise MapError(f"{shortened(what)} is no {kind.__name__}")
    return value


def check_name(name: str) -> None:
    """Refuse names of extras that a data unit could not have."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise MapError(f"the name {shortened(name)} is no Unicode text") from None
    if "\0" in name or size > _MAX_NAME_BYTES:
        raise MapError(f"the name {shortened(name)} has a zero character, or is too long")


def check_keys(entry: Mapping[str, Any], known: set[str], what: str) -> None:
    """Refuse keys that are not `known`."""
    unknown = sorted(set(entry) - known)
    if unknown:
        raise MapError(f"{shortened(what)}: unknown key {shortened(unknown[0])}")


def checked_dtype(name: Any) -> str:
    """Return the name of an element type, which must be one that can be coded."""
    try:
        dtype_of(typed(name, str, "dtype"))
    except KeyError:
        raise MapError(f"unknown dtype {shortened(name)}") from None
    return str(name)


def checked_shape(value: Any, max_dimensions: int) -> tuple[int, ...]:
    """Return a shape of at most `max_dimensions` dimensions, none of them too large."""
    shape = tuple(typed(value, list, "shape"))
    allowed = min(max_dimensions, _ARRAY_DIMENSIONS)
    if len(shape) > allowed:
        raise MapError(f"a shape of {len(shape)} dimensions, the limit is {allowed}")
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_PRODUCT:
            raise MapError(f"{shortened(size)} is no dimension")
    if math.prod(size for size in shape if size) > MAX_PRODUCT:  # of an empty tensor too
        raise MapError("the dimensions of a shape are too large together")
    return shape


def shortened(value: Any) -> str:
    """Return `value` for a message, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
