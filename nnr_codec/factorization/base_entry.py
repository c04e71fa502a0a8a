"""What the model map of an update says of its base: which one it is, and how both make a model.

spec/model_map.md, "Updates of a base", has the definition of every key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from .map_checks import MapError, check_keys, check_name, shortened, typed

_DIGEST = re.compile("[0-9a-f]{64}")

Run = tuple[int, int]
"""The first of some tensors that follow each other in a list, and how many they are."""


@dataclass(frozen=True, slots=True)
class BaseEntry:
    """The base of an update.

    Attributes:
        stream: SHA-256 of the last stream of the base, of all its bytes, as 64 hexadecimal digits.
        digest: that of the model which all streams of the base make: ``support.digest``.
        whole: names of the coded tensors that stand in place of those of the base.
        xor: names of the coded tensors whose integers say which bits of the base's tensors change.
        removed: names of the base's tensors that the model does not have.
        order: the order of the model's tensors, as runs of their list; empty: as they stand there.
    """

    stream: str
    digest: str
    whole: tuple[str, ...] = ()
    xor: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    order: tuple[Run, ...] = ()

    def check(self, names: Mapping[str, int], parts: Mapping[str, str]) -> None:
        """Check that it tells of coded tensors of its stream alone, which are no parts.

        Raises:
            MapError: it does not.
        """
        for name in (*self.whole, *self.xor):
            if name not in names or name in parts:
                raise MapError(f"base: the stream has no tensor {shortened(name)}")

    def model_order(self, listed: list[str]) -> list[str]:
        """Return the names of the model's tensors in order.

        Args:
            listed: those of the base that are not removed, in its order, and the new ones.

        Raises:
            MapError: the order has one of them twice or not at all.
        """
        if not self.order:
            return listed
        if sum(count for _, count in self.order) != len(listed):
            raise MapError(f"base: an order of another number of tensors than {len(listed)}")
        indices = [index for first, count in self.order for index in range(first, first + count)]
        if sorted(indices) != list(range(len(listed))):
            raise MapError("base: an order that has a tensor twice")
        return [listed[index] for index in indices]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the map."""
        lists = {"whole": self.whole, "xor": self.xor, "removed": self.removed, "order": self.order}
        said = {key: list(value) for key, value in lists.items() if value}
        return {"stream": self.stream, "digest": self.digest, **said}


def runs_of(names: Iterable[str], listed: list[str]) -> tuple[Run, ...]:
    """Return the order of `names` as runs of a list of them; nothing if it is the list's."""
    positions = {name: index for index, name in enumerate(listed)}
    runs = tuple(_runs(positions[name] for name in names))
    return () if len(runs) <= 1 else runs


def _runs(indices: Iterable[int]) -> Iterator[Run]:
    first = count = 0
    for index in indices:
        if count and index != first + count:
            yield first, count
            first, count = index, 0
        elif not count:
            first = index
        count += 1
    if count:
        yield first, count


def parse_base_entry(data: Any) -> BaseEntry:
    """Read the map's entry of a base.

    Raises:
        MapError: it is damaged.
    """
    typed(data, dict, "base")
    check_keys(data, {"stream", "digest", "whole", "xor", "removed", "order"}, "base")
    for key in ("stream", "digest"):
        if not _DIGEST.fullmatch(typed(data.get(key), str, f"base: {key}")):
            raise MapError(f"base: {key} is no SHA-256 of 64 hexadecimal digits")
    whole, xor, removed = (_names(data, key) for key in ("whole", "xor", "removed"))
    both = set(whole) & set(xor)
    if both:
        raise MapError(f"base: {shortened(min(both))} is whole, and says which bits change")
    return BaseEntry(data["stream"], data["digest"], whole, xor, removed, _order(data))


def _names(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = tuple(typed(name, str, f"base: {key}") for name in _listed(data, key))
    for name in names:
        check_name(name)
    if len(set(names)) != len(names):
        raise MapError(f"base: {key} has a name twice")
    return names


def _order(data: Mapping[str, Any]) -> tuple[Run, ...]:
    runs = [typed(run, list, "base: order") for run in _listed(data, "order")]
    for number in chain.from_iterable(runs):
        if type(number) is not int or number < 0:
            raise MapError(f"base: order: {shortened(number)} is no number")
    if any(len(run) != 2 or not run[1] for run in runs):
        raise MapError("base: order has runs that are none")
    return tuple((first, count) for first, count in runs)


def _listed(data: Mapping[str, Any], key: str) -> list[Any]:
    """Return an array of the entry; one that is there says something."""
    if key not in data:
        return []
    values: list[Any] = typed(data[key], list, f"base: {key}")
    if not values:
        raise MapError(f"base: {key} is empty")
    return values
