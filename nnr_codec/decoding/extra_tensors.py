"""What a stream's map says of tensors while they go by: extras in their places, parts joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from ..bitstream import DataUnit, ParsedUnit
from ..errors import InvalidBitstream, LimitExceeded
from ..factorization.factorizations import Factorization
from ..factorization.model_map import Extra, MapError, ModelMap, Restored
from ..factorization.restored import restore
from ..factorization.tensor_order import TensorOrder
from .recomposition import block_factorization
from .unit_decoder import DecodedTensor


class ExtraTensors:
    """Gives the extras of one stream, and joins parts, while its tensors go by.

    Attributes:
        model_map: the stream's map, as soon as it is known.
        order: how the stream's map orders the coded tensors.
        factorizations: the weights that come as factors, those of the map and of the decomposed
            blocks so far.
        weight_elements: elements of the weights that the map makes of factors, and of those that
            are tied to them.
    """

    def __init__(self) -> None:
        self.order = TensorOrder()
        self.factorizations: dict[str, Factorization] = {}
        self.weight_elements = 0
        self.model_map: ModelMap | None = None
        self._users: Mapping[str, list[str]] = {}
        self._by_place: dict[str | None, list[Extra]] = {}
        self._aliases: dict[str, list[str]] = {}
        self._to_come: Counter[str] = Counter()  # ties to a tensor
        self._tied: dict[str, npt.NDArray[Any]] = {}
        self._entries: Mapping[str, Restored] = {}
        self._owners: Mapping[str, str] = {}
        self._parts: dict[str, npt.NDArray[Any]] = {}

    def use(self, model_map: ModelMap | None) -> None:
        """Take the stream's map, as soon as it is known."""
        if model_map is None or self.model_map is not None:
            return
        self.model_map = model_map
        self.order = model_map.order
        self._entries, self._owners = model_map.tensors, model_map.owners
        for extra in model_map.extras:
            self._by_place.setdefault(extra.after, []).append(extra)
            if extra.tied_to is not None:
                self._aliases.setdefault(extra.tied_to, []).append(extra.name)
                self._to_come[extra.tied_to] += 1
        self._users = model_map.users
        self.factorizations.update(model_map.factorizations)
        self.weight_elements = sum(
            entry.elements * (1 + len(self.aliases(name)))
            for name, entry in model_map.factorizations.items()
        )

    def note(self, parsed: ParsedUnit) -> None:
        """Take a unit's header: the stream's map, or a weight in factors of its own."""
        self.use(parsed.context.model_map)
        record = parsed.record
        if isinstance(record, DataUnit) and record.is_decomposed_block:
            entry = block_factorization(record, parsed.context.model_map)
            if entry is not None:
                self.factorizations[record.dense_name] = entry

    def weights_of(self, name: str) -> list[str]:
        """Return the names of the weights that the map makes of coded tensor `name`."""
        return self._users.get(name, [])

    @property
    def has_ties(self) -> bool:
        """Whether any extra is tied to a tensor."""
        return bool(self._aliases)

    def aliases(self, name: str) -> list[str]:
        """Return the names of the extras that are tied to tensor `name`."""
        return self._aliases.get(name, [])

    def is_part(self, name: str) -> bool:
        """Whether coded tensor `name` is a part of another, and no tensor of the model."""
        return name in self._owners

    def results(self, name: str) -> list[str]:
        """Return the names under which coded tensor `name` comes back: its own, those of the
        weights that are made of it, and of all ties to them; of a part: those of its owner."""
        owner = self._owners.get(name, name)
        names = [owner, *self.weights_of(owner)]
        return [*names, *(alias for result in names for alias in self.aliases(result))]

    def joined(self, tensor: DecodedTensor) -> DecodedTensor | None:
        """Return a tensor made complete by its part, which came before; None for a part itself.

        Raises:
            InvalidBitstream: the map does not fit them.
        """
        if self.is_part(tensor.name):
            self._parts[tensor.name] = tensor.values
            return None
        entry = self._entries.get(tensor.name)
        if entry is None or entry.part is None:
            return tensor
        return replace(tensor, values=join(tensor, entry, self._parts.pop(entry.part, None)))

    def outlined(self, tensor: DecodedTensor) -> DecodedTensor | None:
        """Return a tensor without values as it will be with its part; None for a part itself."""
        return None if self.is_part(tensor.name) else tensor

    def after(self, tensor: DecodedTensor | None) -> Iterator[DecodedTensor]:
        """Yield the extras that follow a tensor; None: those that come first."""
        if tensor is not None and tensor.name in self._aliases:
            self._tied[tensor.name] = tensor.values
        yield from self._restored(self.placed_after(tensor.name if tensor else None))

    def placed_after(self, name: str | None) -> list[Extra]:
        """Return what the map has to say of the extras behind tensor `name`, once."""
        return self._by_place.pop(name, [])

    def rest(self) -> Iterator[DecodedTensor]:
        """Yield, at the stream's end, the extras whose places were passed over."""
        for extras in self._by_place.values():
            yield from self._restored(extras)
        self._by_place = {}

    def _restored(self, extras: list[Extra]) -> Iterator[DecodedTensor]:
        for extra in extras:
            if extra.tied_to is None:
                yield DecodedTensor(extra.name, "empty", extra.empty())
            elif extra.tied_to in self._tied:  # else it was not asked for
                values = self._tied[extra.tied_to]
                self._to_come[extra.tied_to] -= 1
                if not self._to_come[extra.tied_to]:
                    del self._tied[extra.tied_to]  # so that its memory can go
                yield DecodedTensor(extra.name, "tied", values, tied_to=extra.tied_to)


def join(tensor: DecodedTensor, entry: Restored, part: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """Return the values of a tensor that is made of itself and a part.

    Raises:
        InvalidBitstream: the map does not fit them.
        LimitExceeded: they do not fit the memory.
    """
    try:
        return restore(entry, tensor.values, part)
    except MemoryError:
        limit = "memory of this machine, in elements"
        raise LimitExceeded(limit, tensor.values.size, 0) from None
    except MapError as error:
        raise InvalidBitstream("model map", 0, f"tensor {tensor.name!r}: {error}") from None
