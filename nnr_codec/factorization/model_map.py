"""The model map: what the standard's elements cannot say, as JSON in the topology unit.

Element types and shapes of tensors that come back otherwise than they are coded, and tensors that
have no data unit: empty ones, and those that share another's storage. spec/model_map.md defines it.
A decoder that does not know it still reads every coded tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedFeature
from ..model import dtype_of
from .tensor_order import BLOCK_ROLES, BY_NAME, TensorOrder

KEY = "nnr_model_map"
VERSION = 1
_MAX_NAME_BYTES = 4096
_PREFIX = f'{{"{KEY}"'
MAX_PRODUCT = 2**40
"""Of the dimensions that are not 0, of an empty tensor too."""

_ARRAY_DIMENSIONS = 32  # that every numpy has


class MapError(ValueError):
    """A text is no model map, or a map does not fit its stream."""


@dataclass(frozen=True, slots=True)
class Restored:
    """How a coded tensor comes back; None: as it is coded.

    Attributes:
        dtype: element type, by the name of ``nnr_codec.model.dtype_of``.
        shape: dimensions, of as many elements.
    """

    dtype: str | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Extra:
    """A tensor without a data unit.

    Attributes:
        name: its name.
        after: name of the coded tensor that it follows; None: it comes first.
        tied_to: name of the coded tensor, not behind it, whose values are its own; None: it is
            empty, and has `dtype` and `shape`.
    """

    name: str
    after: str | None
    tied_to: str | None = None
    dtype: str = "float32"
    shape: tuple[int, ...] = (0,)

    def empty(self) -> npt.NDArray[Any]:
        """Return the empty tensor."""
        return np.zeros(self.shape, dtype_of(self.dtype))


@dataclass(frozen=True, slots=True)
class ModelMap:
    """The map of one stream.

    Attributes:
        tensors: coded tensors that come back otherwise, by name.
        extras: tensors without a data unit, in order.
        order: how the coded tensors are ordered, if not as in the stream.
    """

    tensors: Mapping[str, Restored] = field(default_factory=dict)
    extras: tuple[Extra, ...] = ()
    order: TensorOrder = field(default_factory=TensorOrder)

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return bool(self.tensors or self.extras or self.order)

    def check(self, names: Mapping[str, int]) -> None:
        """Check that the map fits a stream, whose tensors `names` gives with their places.

        Raises:
            MapError: it tells of tensors that are not there, are there already, or come later.
        """
        names = self.order.places(names)
        for name in self.tensors:
            if name not in names:
                raise MapError(f"the stream has no tensor {_shortened(name)}")
        for extra in self.extras:
            if extra.name in names:
                raise MapError(f"{_shortened(extra.name)} has a data unit and is an extra")
            place = -1 if extra.after is None else names.get(extra.after)
            target = -1 if extra.tied_to is None else names.get(extra.tied_to)
            if place is None or target is None or target > place:
                raise MapError(f"{_shortened(extra.name)} refers to tensors that do not precede it")

    def part(self, names: Iterable[str]) -> ModelMap:
        """Return what the map says of single coded tensors."""
        return ModelMap({name: self.tensors[name] for name in names if name in self.tensors})

    def to_text(self) -> str:
        """Return the JSON text."""
        data: dict[str, Any] = {KEY: VERSION}
        if self.tensors:
            data["tensors"] = {
                name: _without_none(dtype=entry.dtype, shape=entry.shape)
                for name, entry in self.tensors.items()
            }
        if self.extras:
            data["extras"] = [_extra_json(extra) for extra in self.extras]
        if self.order:
            data["order"] = BY_NAME if self.order.by_name else self.order.roles
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _without_none(**items: Any) -> dict[str, Any]:
    return {key: value for key, value in items.items() if value is not None}


def _extra_json(extra: Extra) -> dict[str, Any]:
    if extra.tied_to is not None:
        return _without_none(name=extra.name, after=extra.after, tied_to=extra.tied_to)
    return _without_none(
        name=extra.name, after=extra.after, dtype=extra.dtype, shape=list(extra.shape)
    )


def parse_model_map(text: str, max_dimensions: int) -> ModelMap | None:
    """Parse the text of a topology unit; None if it is no model map at all.

    Raises:
        MapError: the map is damaged.
        UnsupportedFeature: it has another version.
    """
    if not text.startswith(_PREFIX):
        return None
    try:
        data = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except MapError:
        raise
    except (ValueError, RecursionError) as error:
        raise MapError(f"no JSON: {error}") from None
    version = data.pop(KEY)
    if type(version) is not int or version != VERSION:
        raise UnsupportedFeature(KEY, _shortened(version), "unknown version")
    _check_keys(data, {"tensors", "extras", "order"}, "the map")
    tensors = _typed(data.get("tensors", {}), dict, "tensors")
    extras = _typed(data.get("extras", []), list, "extras")
    restored = {name: _restored(name, entry, max_dimensions) for name, entry in tensors.items()}
    order = _order(data["order"]) if "order" in data else TensorOrder()
    found = ModelMap(restored, tuple(_extra(entry, max_dimensions) for entry in extras), order)
    if len({extra.name for extra in found.extras}) != len(found.extras):
        raise MapError("two extras have one name")
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MapError("a key stands twice in an object")
    return found


def _no_constant(text: str) -> Any:
    raise MapError(f"{text} is no number of JSON")


def _restored(name: str, entry: Any, max_dimensions: int) -> Restored:
    _typed(entry, dict, name)
    _check_keys(entry, {"dtype", "shape"}, name)
    dtype = _dtype(entry["dtype"]) if "dtype" in entry else None
    shape = _shape(entry["shape"], max_dimensions) if "shape" in entry else None
    return Restored(dtype, shape)


def _extra(entry: Any, max_dimensions: int) -> Extra:
    _typed(entry, dict, "extras")
    name = _typed(entry.get("name"), str, "name")
    _check_name(name)
    after = entry.get("after")
    if after is not None:
        _typed(after, str, "after")
    if "tied_to" in entry:
        _check_keys(entry, {"name", "after", "tied_to"}, name)
        return Extra(name, after, _typed(entry["tied_to"], str, "tied_to"))
    _check_keys(entry, {"name", "after", "dtype", "shape"}, name)
    shape = _shape(entry.get("shape"), max_dimensions)
    if math.prod(shape) != 0:
        raise MapError(f"{_shortened(name)} has no data unit and is not empty")
    return Extra(name, after, None, _dtype(entry.get("dtype")), shape)


def _order(value: Any) -> TensorOrder:
    if value == BY_NAME:
        return TensorOrder(by_name=True)
    roles = _typed(value, list, "order")
    if not roles:
        raise MapError("an order of no roles")
    for role in roles:
        if role not in BLOCK_ROLES or roles.count(role) > 1:
            raise MapError(f"{_shortened(role)} is no role of a block, or stands twice")
    return TensorOrder(roles=tuple(roles))


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise MapError(f"{_shortened(what)} is no {kind.__name__}")
    return value


def _check_name(name: str) -> None:
    """Refuse names of extras that a data unit could not have."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise MapError(f"the name {_shortened(name)} is no Unicode text") from None
    if "\0" in name or size > _MAX_NAME_BYTES:
        raise MapError(f"the name {_shortened(name)} has a zero character, or is too long")


def _check_keys(entry: Mapping[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(set(entry) - known)
    if unknown:
        raise MapError(f"{_shortened(what)}: unknown key {_shortened(unknown[0])}")


def _dtype(name: Any) -> str:
    try:
        dtype_of(_typed(name, str, "dtype"))
    except KeyError:
        raise MapError(f"unknown dtype {_shortened(name)}") from None
    return str(name)


def _shape(value: Any, max_dimensions: int) -> tuple[int, ...]:
    shape = tuple(_typed(value, list, "shape"))
    allowed = min(max_dimensions, _ARRAY_DIMENSIONS)
    if len(shape) > allowed:
        raise MapError(f"a shape of {len(shape)} dimensions, the limit is {allowed}")
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_PRODUCT:
            raise MapError(f"{_shortened(size)} is no dimension")
    if math.prod(size for size in shape if size) > MAX_PRODUCT:  # of an empty tensor too
        raise MapError("the dimensions of a shape are too large together")
    return shape


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
