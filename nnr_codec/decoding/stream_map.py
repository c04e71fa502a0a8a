"""What a stream's headers have said so far, by the names of tensors, and which are selected."""

from __future__ import annotations

import fnmatch
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..bitstream import DataUnit, ParsedUnit, Topology, parse_units
from ..bitstream.lazy_bytes import RangeSource
from ..bitstream.parsed_unit import PassedUnit
from ..bitstream.parsing import parse_wanted_units
from ..errors import InvalidOptions, LimitExceeded
from ..factorization.factorizations import Factorization
from ..factorization.map_checks import MapError
from ..factorization.model_map import ModelMap
from ..factorization.tensor_order import NameRole
from ..factorization.tensor_rules import TensorRule
from ..model import DTYPE_NAMES, dtype_of, is_signed_float
from ..options import DecodeLimits

Layers = Literal["dense", "factorized"]


class StreamMap:
    """The model map of a stream whose units go by, and the weights that blocks hold as factors.

    Attributes:
        model_map: the stream's map, which comes before the first data unit; empty without one.
        factorizations: the weights that come as factors, those of the map and of the decomposed
            blocks so far.
        metadata: the text entries of the model's file.
        passed: the tensors of each data unit ahead of the walk that is not decoded, as none of them
            is selected; nothing for each that is.
    """

    def __init__(self) -> None:
        self.model_map = ModelMap()
        self.factorizations: dict[str, Factorization] = {}
        self.metadata: dict[str, str] = {}
        self.passed: deque[list[NameRole]] = deque()
        self._ties: dict[str, list[str]] = {}

    def units(self, source: Any, limits: DecodeLimits) -> Iterator[ParsedUnit]:
        """Parse all units of a stream, within the limit of all elements, and note them.

        The weights that are made of factors count with the first unit already, ties with their
        tensor.
        """
        for unit in self._noted(parse_units(source, limits), limits):
            if isinstance(unit, ParsedUnit):
                yield unit

    def wanted_units(
        self,
        source: RangeSource,
        limits: DecodeLimits,
        wanted: Callable[[Sequence[NameRole]], bool],
    ) -> Iterator[ParsedUnit | PassedUnit]:
        """Parse the units of a stream, but pass over those of tensors that are not `wanted` and
        that its table of contents tells of."""
        return self._noted(parse_wanted_units(source, limits, wanted), limits)

    def _noted(
        self, units: Iterator[ParsedUnit] | Iterator[ParsedUnit | PassedUnit], limits: DecodeLimits
    ) -> Iterator[ParsedUnit | PassedUnit]:
        coded, formed = 0, 0
        for parsed in units:
            if isinstance(parsed, PassedUnit):
                yield parsed
                continue
            self.note(parsed)
            if isinstance(parsed.record, Topology):
                weights = self.model_map.factorizations.items()
                formed = sum(entry.elements * (1 + len(self.ties(n))) for n, entry in weights)
            elif isinstance(parsed.record, DataUnit):
                coded += parsed.record.decoded_elements
                if self.model_map.extras:
                    names = [name for name, _ in parsed.record.decoded_roles()]
                    ties = sum(len(self.ties(name)) for name in names)
                    coded += parsed.record.decoded_elements * ties
                if coded + formed > limits.max_elements:
                    raise LimitExceeded("max_elements", coded + formed, limits.max_elements)
            yield parsed

    def makes_products(self, tensors: Iterable[NameRole]) -> bool:
        """Whether weights are made of one of these coded tensors."""
        return any(role in ("G", "H") or self.weights_of(name) for name, role in tensors)

    def note(self, parsed: ParsedUnit) -> None:
        """Read a unit's header: the stream's map, or a block's weight in factors."""
        model_map, record = parsed.context.model_map, parsed.record
        if model_map is not None and model_map is not self.model_map:
            self.model_map = model_map
            self.factorizations.update(model_map.factorizations)
            self.metadata.update(model_map.metadata)
            for extra in model_map.extras:
                if extra.tied_to is not None:
                    self._ties.setdefault(extra.tied_to, []).append(extra.name)
        if isinstance(record, DataUnit) and record.is_decomposed_block:
            entry = block_factorization(record, self.model_map)
            if entry is not None:
                self.factorizations[record.dense_name] = entry

    def ties(self, name: str) -> list[str]:
        """Return the names of the tensors that are tied to tensor `name`."""
        return self._ties.get(name, [])

    def weights_of(self, name: str) -> list[str]:
        """Return the names of the weights that the map makes of coded tensor `name`."""
        return self.model_map.users.get(name, [])

    def results(self, name: str) -> list[str]:
        """Return the names of what is decoded of coded tensor `name`: of itself (for a part: of its
        owner), of the weights that are made of it, and of all ties to these."""
        owner = self.model_map.owners.get(name, name)
        names = [owner, *self.weights_of(owner)]
        return [*names, *(tied for result in names for tied in self.ties(result))]


@dataclass(frozen=True, slots=True)
class Selection:
    """What is to be decoded of a stream; the arguments are those of :func:`nnr_codec.decode`.

    Raises:
        InvalidOptions: there are no such layers, or `only` is no text.
    """

    layers: Layers = "dense"
    only: str | None = None

    def __post_init__(self) -> None:
        if self.layers not in ("dense", "factorized"):
            raise InvalidOptions("layers", f"{self.layers!r} is neither 'dense' nor 'factorized'")
        if self.only is not None and not isinstance(self.only, str):
            raise InvalidOptions("only", f"{self.only!r} is no glob")

    def matches(self, name: str) -> bool:
        """Whether `only` matches a name."""
        return self.only is None or fnmatch.fnmatchcase(name, self.only)

    def selects(self, name: str, role: str, stream: StreamMap) -> bool:
        """Whether a tensor is selected: a factor also by the name of a weight made of it."""
        weights = [name[:-2]] if role in ("G", "H") else stream.weights_of(name)
        left_out = bool(weights) if self.layers == "dense" else role == "dense"
        return not left_out and (self.only is None or any(map(self.matches, [name, *weights])))

    def forms(self, weight: str, stream: StreamMap) -> bool:
        """Whether a weight is to be formed of its factors: it, or a tie to it, is selected."""
        ties = stream.ties(weight)
        return any(map(self.matches, [weight, *ties] if self.layers == "dense" else ties))

    def needs(self, tensors: Iterable[NameRole], stream: StreamMap) -> bool:
        """Whether a unit of these tensors has a selected one, or one that a selected one needs."""
        names = (name for coded, _ in tensors for name in stream.results(coded))
        return self.only is None or any(map(self.matches, names))


def block_factorization(record: DataUnit, model_map: ModelMap) -> Factorization | None:
    """Return what a decomposed BLOCK says of its weight, as the map would say it.

    None where the map has no word for it: G has other rows than the weight, the rank is beyond
    what a weight of its shape needs, or the stream's map gives a factor another shape, or the
    weight or a factor a type that holds no numbers of both signs, or calls one of them a part.
    """
    names = tuple(record.names[:2])
    if model_map.owners.keys() & {record.dense_name, *names}:
        return None
    rule = model_map.tensors.get(record.dense_name, TensorRule())
    shape = rule.shape or tuple(record.tensor_dimensions or ())
    dtype = rule.dtype or record.element_type
    factors = [model_map.tensors.get(name, TensorRule()) for name in names]
    types = [dtype, *(factor.dtype for factor in factors if factor.dtype is not None)]
    if any(factor.shape is not None for factor in factors) or not all(map(_is_signed, types)):
        return None
    entry = Factorization("lr", shape, names, dtype)
    try:
        entry.ranks(record.factor_shapes())
    except MapError:
        return None
    return entry


def _is_signed(dtype: str) -> bool:
    """Whether factors can have a type; some integers of the standard are none of a tensor's."""
    return dtype in DTYPE_NAMES and is_signed_float(dtype_of(dtype))
