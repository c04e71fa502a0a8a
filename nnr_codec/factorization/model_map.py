"""The model map: what the standard's elements cannot say, as JSON in the topology unit.

Element types and shapes of tensors that come back otherwise than they are coded, and tensors that
have no data unit: empty ones, those that share another's storage, and weights that travel as
factors. spec/model_map.md defines it. A decoder that does not know it still reads every coded
tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import UnsupportedFeature
from ..model import dtype_of, is_signed_float
from .base_entry import BaseEntry, parse_base_entry
from .extras import Extra, parse_extra
from .factor_tracker import users_of
from .factorizations import Factorization, factors_of, parse_factorization
from .map_checks import (
    MAX_PRODUCT,
    MapError,
    check_keys,
    shortened,
    typed,
)
from .metadata import KEY, parse_metadata
from .tensor_order import BLOCK_ROLES, BY_NAME, TensorOrder
from .tensor_rules import TensorRule, parse_tensor_rule
from .unit_index import UnitIndex, parse_unit_index

_KEYS = {
    1: frozenset(["tensors", "extras", "order", "factorizations", "metadata"]),
    2: frozenset(["base", "quality_layers", "index"]),
}
"""By the version of the map that they came with, the keys behind that of the version."""

MAX_QUALITY_LAYERS = 255
"""Streams in a file."""

MAP_BEGIN = f'{{"{KEY}"'
"""What tells a map from any other text of a topology unit."""


@dataclass(frozen=True)
class ModelMap:
    """The map of one stream.

    Attributes:
        tensors: coded tensors that come back otherwise, by name.
        extras: tensors without a data unit, in order.
        order: how the coded tensors are ordered, if not as in the stream.
        factorizations: weights that are made of coded tensors, by name.
        metadata: the text entries of the model's file.
        base: of an update, what it is added to; None: the stream stands by itself.
        quality_layers: bytes of the streams that make the model, of which this is the first; the
            others stand behind it, each an update of those before it. Empty: there is one stream.
        index: the stream's table of contents; None without one.
    """

    tensors: Mapping[str, TensorRule] = field(default_factory=dict)
    extras: tuple[Extra, ...] = ()
    order: TensorOrder = field(default_factory=TensorOrder)
    factorizations: Mapping[str, Factorization] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    base: BaseEntry | None = None
    quality_layers: tuple[int, ...] = ()
    index: UnitIndex | None = None

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return self.version > 1 or any(
            (self.tensors, self.extras, self.order, self.factorizations, self.metadata)
        )

    @property
    def version(self) -> int:
        """The least version of the map that can say this."""
        return 1 if self.index is None and self.base is None and not self.quality_layers else 2

    @cached_property
    def owners(self) -> dict[str, str]:
        """Names of the tensors that are parts of others, with those they are parts of."""
        return {entry.part: name for name, entry in self.tensors.items() if entry.part is not None}

    @cached_property
    def users(self) -> dict[str, list[str]]:
        """Names of the factors, with those of the weights that are made of them."""
        return users_of(factors_of(self.factorizations))

    def check_parts(self) -> None:
        """Check that a part belongs to one tensor alone, and is nothing else.

        Raises:
            MapError: it does not, or it is.
        """
        if len(self.owners) != sum(entry.part is not None for entry in self.tensors.values()):
            raise MapError("two tensors have one part")
        used: set[str | None] = set(self.tensors)
        for extra in self.extras:
            used |= {extra.name, extra.after, extra.tied_to}
        for part in self.owners:
            if part in used:
                raise MapError(f"{shortened(part)} is a part, and used otherwise")

    def check_factors(self) -> None:
        """Check that a factored weight has no other meaning, and its factors have none.

        Raises:
            MapError: they have.
        """
        extras = {extra.name for extra in self.extras}
        for name in self.factorizations:
            if name in self.users or name in self.tensors or name in extras or name in self.owners:
                raise MapError(f"{shortened(name)} is a factored weight, and something else")
        for factor in self.users:
            entry = self.tensors.get(factor, TensorRule())
            is_real = entry.dtype is None or is_signed_float(dtype_of(entry.dtype))
            if factor in extras or factor in self.owners or entry.shape is not None or not is_real:
                raise MapError(f"{shortened(factor)} is no factor: it has another meaning")

    def check(self, names: Mapping[str, int]) -> None:
        """Check that the map fits a stream, whose tensors `names` gives with their positions.

        Raises:
            MapError: it tells of tensors that are not there, are there already, or come later.
        """
        positions = self._with_weights(self.order.positions(names))
        for name in self.tensors:
            if name not in names:
                raise MapError(f"the stream has no tensor {shortened(name)}")
        if self.base is not None:
            self.base.check(names, self.owners)
        for part, owner in self.owners.items():
            if positions.get(part, positions[owner]) >= positions[owner]:
                raise MapError(f"{shortened(part)} does not come before what it is a part of")
        for extra in self.extras:
            if extra.name in positions:
                raise MapError(f"{shortened(extra.name)} has a data unit and is an extra")
            position = -1 if extra.after is None else positions.get(extra.after)
            target = -1 if extra.tied_to is None else positions.get(extra.tied_to)
            if position is None or target is None or target > position:
                raise MapError(f"{shortened(extra.name)} refers to tensors that do not precede it")

    def _with_weights(self, names: Mapping[str, int]) -> Mapping[str, float]:
        """Return the positions of a stream's tensors and of the factored weights between them."""
        positions: dict[str, float] = dict(names)
        last: set[int] = set()
        for name, entry in self.factorizations.items():
            if name in names:
                raise MapError(f"{shortened(name)} has a data unit and is a factored weight")
            missing = [factor for factor in entry.factors if factor not in names]
            if missing:
                raise MapError(f"the stream has no factor {shortened(missing[0])}")
            position = max(names[factor] for factor in entry.factors)
            if position in last:
                raise MapError(f"{shortened(name)} ends with a factor that ends another weight")
            last.add(position)
            positions[name] = position + 0.5
        return positions

    def part(self, names: Iterable[str]) -> ModelMap:
        """Return what the map says of single coded tensors."""
        return ModelMap({name: self.tensors[name] for name in names if name in self.tensors})

    def to_text(self) -> str:
        """Return the JSON text."""
        data: dict[str, Any] = {KEY: self.version}
        if self.tensors:
            data["tensors"] = {name: entry.to_json() for name, entry in self.tensors.items()}
        if self.extras:
            data["extras"] = [extra.to_json() for extra in self.extras]
        if self.order:
            data["order"] = BY_NAME if self.order.by_name else self.order.roles
        if self.factorizations:
            weights = self.factorizations.items()
            data["factorizations"] = {name: entry.to_json() for name, entry in weights}
        if self.metadata:
            data["metadata"] = dict(self.metadata)
        if self.base is not None:
            data["base"] = self.base.to_json()
        if self.quality_layers:
            data["quality_layers"] = self.quality_layers
        if self.index is not None:  # last, where readers expect its text
            data["index"] = self.index.to_text()
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def parse_model_map(text: str, max_dimensions: int) -> ModelMap | None:
    """Parse the text of a topology unit; None if it is no model map at all.

    Raises:
        MapError: the map is damaged.
        UnsupportedFeature: it has another version.
    """
    if not text.startswith(MAP_BEGIN):
        return None
    try:
        data = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except MapError:
        raise
    except (ValueError, RecursionError) as error:
        raise MapError(f"no JSON: {error}") from None
    version = data.pop(KEY)
    if type(version) is not int or version not in _KEYS:
        raise UnsupportedFeature(KEY, shortened(version), "unknown version")
    check_keys(data, {key for v in range(1, version + 1) for key in _KEYS[v]}, "the map")
    tensors = typed(data.get("tensors", {}), dict, "tensors")
    extras = typed(data.get("extras", []), list, "extras")
    rules = {n: parse_tensor_rule(n, entry, max_dimensions) for n, entry in tensors.items()}
    order = _order(data["order"]) if "order" in data else TensorOrder()
    weights = typed(data.get("factorizations", {}), dict, "factorizations")
    factored = {n: parse_factorization(n, entry, max_dimensions) for n, entry in weights.items()}
    extra_tensors = tuple(parse_extra(entry, max_dimensions) for entry in extras)
    metadata = parse_metadata(data.get("metadata", {}))
    base = parse_base_entry(data["base"]) if "base" in data else None
    index = parse_unit_index(typed(data["index"], str, "index")) if "index" in data else None
    layers = _quality_layers(data["quality_layers"], base) if "quality_layers" in data else ()
    model_map = ModelMap(rules, extra_tensors, order, factored, metadata, base, layers, index)
    if len({extra.name for extra in model_map.extras}) != len(model_map.extras):
        raise MapError("two extras have one name")
    model_map.check_parts()
    model_map.check_factors()
    return model_map


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise MapError("a key stands twice in an object")
    return entries


def _no_constant(text: str) -> Any:
    raise MapError(f"{text} is no number of JSON")


def _quality_layers(value: Any, base: BaseEntry | None) -> tuple[int, ...]:
    sizes = typed(value, list, "quality_layers")
    if not 2 <= len(sizes) <= MAX_QUALITY_LAYERS:
        raise MapError(f"quality_layers: {len(sizes)} are not from 2 to {MAX_QUALITY_LAYERS}")
    for size in sizes:
        if type(size) is not int or not 0 < size < MAX_PRODUCT:
            raise MapError(f"quality_layers: {shortened(size)} is no number of bytes")
    if base is not None:
        raise MapError("quality_layers of an update: they belong to a stream that stands by itself")
    return tuple(sizes)


def _order(value: Any) -> TensorOrder:
    if value == BY_NAME:
        return TensorOrder(by_name=True)
    roles = typed(value, list, "order")
    if not roles:
        raise MapError("an order of no roles")
    for role in roles:
        if role not in BLOCK_ROLES or roles.count(role) > 1:
            raise MapError(f"{shortened(role)} is no role of a block, or stands twice")
    return TensorOrder(roles=tuple(roles))
