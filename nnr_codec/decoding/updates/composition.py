"""How the tensors of a model are made of what one stream, or a base and its updates, hold.

spec/model_map.md, "Updates of a base", has the definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ...errors import InvalidBitstream
from ...factorization.base_entry import BaseEntry
from ...factorization.factorizations import Factorization, factors_of
from ...factorization.map_checks import MapError, shortened
from ...model import Array, is_signed_float
from ..finishing import recomposed
from .coded_piece import CodedPiece, Summand
from .open_stream import OpenStream, QuantizerStep, StreamTensor
from .sums import check_sum

_MOST_PRODUCTS = 2
"""That are formed one of the other, where factors are sums over products of the base."""


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """A tensor of a model.

    Attributes:
        shape, dtype: its own.
        role: "coded": it is a piece; "dense": made of factors; "tied"; or "empty".
        entry: of a dense one, what it is made of.
        tied_to: of a tied one, the tensor whose values it shares.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    role: str
    entry: Factorization | None = None
    tied_to: str | None = None


@dataclass(frozen=True, slots=True)
class Composition:
    """A model and what it is made of.

    Attributes:
        pieces: by name, factors included.
        tensors: those of the model by name, in order.
        products: what forms weights that one unit holds with its factors, by name.
        metadata: the text entries of the model's file.
    """

    pieces: Mapping[str, CodedPiece] = field(default_factory=dict)
    tensors: Mapping[str, ModelTensor] = field(default_factory=dict)
    products: Mapping[str, Callable[[], Array]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def factorizations(self) -> dict[str, Factorization]:
        """The weights that are made of factors, by name."""
        entries = ((name, tensor.entry) for name, tensor in self.tensors.items())
        return {name: entry for name, entry in entries if entry is not None}

    @property
    def elements(self) -> int:
        """Elements of all tensors, and of the factors that weights are made of."""
        factors = {name for names in factors_of(self.factorizations).values() for name in names}
        shapes = [tensor.shape for tensor in self.tensors.values()]
        return sum(map(math.prod, [*shapes, *(self.pieces[name].shape for name in factors)]))

    def piece(self, name: str) -> CodedPiece | None:
        """Return what an update is added to under a name: a factor, or a tensor of the model."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.role == "coded":
            return self.pieces.get(name)
        if tensor.tied_to is not None:
            return self.piece(tensor.tied_to)
        if tensor.entry is None:  # it is empty: nothing can be added
            return None
        product = Summand(partial(self.product, name), QuantizerStep)
        products = 1 + max(self.pieces[factor].products for factor in tensor.entry.factors)
        return CodedPiece(tensor.shape, tensor.dtype, (product,), products)

    def product(self, name: str) -> Array:
        """Return a weight that is made of factors.

        Raises:
            BitstreamError: one of these is damaged.
        """
        if name in self.products:
            return self.products[name]()
        entry = self.factorizations[name]
        return recomposed(name, entry, [self.pieces[factor].read() for factor in entry.factors])


def composition_of(stream: OpenStream) -> Composition:
    """Return what a stream by itself decodes to; of an update, the differences.

    The factors G and H of a decomposed block of the weight X are called X.factor0 and X.factor1.
    """
    renamed = {
        old: f"{weight}.factor{index}"
        for weight, entry in stream.stream.factorizations.items()
        for index, old in enumerate(entry.factors)
        if weight not in stream.stream.model_map.factorizations
    }
    pieces, tensors, products = {}, {}, {}
    for tensor in stream.tensors("factorized"):
        if tensor.lazy.role not in ("dense", "tied", "empty"):
            name = tensor.lazy.name
            pieces[renamed.get(name, name)] = _piece(stream, tensor)
    for tensor in stream.tensors("dense"):
        name, outline = tensor.lazy.name, tensor.outline
        shape, dtype = outline.values.shape, outline.values.dtype
        entry = stream.stream.factorizations.get(name)
        if outline.role in ("tied", "empty"):
            tensors[name] = ModelTensor(shape, dtype, outline.role, tied_to=outline.tied_to)
        elif entry is not None:
            factors = tuple(renamed.get(factor, factor) for factor in entry.factors)
            tensors[name] = ModelTensor(shape, dtype, "dense", replace(entry, factors=factors))
            if factors != entry.factors:
                products[name] = tensor.lazy.read
        else:
            pieces.setdefault(name, _piece(stream, tensor))  # a product that no entry describes
            tensors[name] = ModelTensor(shape, dtype, "coded")
    return Composition(pieces, tensors, products, stream.stream.metadata)


def _piece(stream: OpenStream, tensor: StreamTensor) -> CodedPiece:
    values, lazy = tensor.outline.values, tensor.lazy
    is_coded = lazy.role != "dense"
    step = partial(stream.step, lazy.name) if is_coded else QuantizerStep
    summand = Summand(lazy.read, step, stream.units_of(lazy.name))
    return CodedPiece(values.shape, values.dtype, (summand,))


def updated(base: Composition, update: Composition, entry: BaseEntry) -> Composition:
    """Return the model that an update makes of its base.

    Args:
        base: the base's.
        update: the update's own.
        entry: what its map says of the base.

    Raises:
        InvalidBitstream: the update does not fit the base.
    """
    try:
        return _Merge(base, update, entry).composition()
    except MapError as error:
        raise InvalidBitstream("model map", 0, str(error)) from None


class _Merge:
    """Puts a base and an update together; raises MapError where they do not fit."""

    def __init__(self, base: Composition, update: Composition, entry: BaseEntry) -> None:
        self._base = base
        self._update = update
        self._entry = entry

    def composition(self) -> Composition:
        coded = {name: self._sum(name, piece) for name, piece in self._update.pieces.items()}
        pieces = {**self._base.pieces, **coded}
        tensors = self._tensors()
        replaced = coded.keys() | self._update.tensors.keys()
        products = {
            name: form
            for name, form in self._base.products.items()
            if name not in replaced and not replaced & set(_factors(self._base.tensors[name]))
        }
        products |= self._new_products()
        made = Composition(pieces, tensors, products, self._update.metadata)
        return replace(made, tensors=dict(_checked(made)))

    def _sum(self, name: str, own: CodedPiece) -> CodedPiece:
        """Return a coded tensor of the update added to that of the base, if it is to be."""
        base = self._base.piece(name)
        if name in self._entry.whole:
            return own
        xor = name in self._entry.xor
        if base is None:
            if xor:
                raise MapError(f"base: it has no tensor {shortened(name)}")
            return own
        try:
            check_sum(base.shape, base.dtype, own.shape, own.dtype, xor)
        except MapError as error:
            raise MapError(f"{shortened(name)} {error}") from None
        if base.products > _MOST_PRODUCTS:  # each may double the time of decoding, and more
            reason = f"more than {_MOST_PRODUCTS} products, which are formed one of the other"
            raise MapError(f"{shortened(name)} is added to what is made of {reason}")
        added = [summand._replace(xor=xor) for summand in own.summands]
        return replace(base, summands=(*base.summands, *added))

    def _tensors(self) -> dict[str, ModelTensor]:
        """Return the model's tensors in order."""
        removed = set(self._entry.removed)
        own = dict(self._own_tensors(removed))
        for name in removed:
            if name not in self._base.tensors or name in own:
                raise MapError(f"base: {shortened(name)} is removed, and not there, or coded")
        kept = {n: tensor for n, tensor in self._base.tensors.items() if n not in removed}
        tensors = {**kept, **own}
        return {name: tensors[name] for name in self._entry.model_order(list(tensors))}

    def _own_tensors(self, removed: Collection[str]) -> Iterator[tuple[str, ModelTensor]]:
        """Yield the model's tensors that the update holds; not those that are coded for weights of
        the base, which are made of them."""
        own = self._update.tensors
        stay = self._base.factorizations.keys() - removed - own.keys()
        factors = {name for weight in stay for name in _factors(self._base.tensors[weight])}
        for name, tensor in own.items():
            if name in self._base.tensors or name not in factors:
                yield name, tensor

    def _new_products(self) -> dict[str, Callable[[], Array]]:
        """Return what forms the weights of blocks of the update that are not sums."""
        return {
            name: form
            for name, form in self._update.products.items()
            if not any(
                self._base.piece(factor) is not None and factor not in self._entry.whole
                for factor in _factors(self._update.tensors[name])
            )
        }


def _factors(tensor: ModelTensor) -> tuple[str, ...]:
    return () if tensor.entry is None else tensor.entry.factors


def _checked(made: Composition) -> Iterator[tuple[str, ModelTensor]]:
    """Yield the tensors with the shapes and types of what they are made of."""
    done: dict[str, ModelTensor] = {}
    for name, tensor in made.tensors.items():
        if tensor.role == "coded":
            piece = made.pieces[name]
            tensor = replace(tensor, shape=piece.shape, dtype=piece.dtype)
        elif tensor.tied_to is not None:
            first = done.get(tensor.tied_to)
            if first is None or first.role in ("tied", "empty"):
                reason = f"{shortened(name)} is tied to what is no tensor before it"
                raise MapError(f"base: {reason}")
            tensor = replace(tensor, shape=first.shape, dtype=first.dtype)
        elif tensor.entry is not None:
            _check_factors(name, tensor.entry, made.pieces)
        done[name] = tensor
        yield name, tensor


def _check_factors(name: str, entry: Factorization, pieces: Mapping[str, CodedPiece]) -> None:
    factors = [pieces[factor] for factor in entry.factors]
    if not all(is_signed_float(factor.dtype) for factor in factors):
        raise MapError(f"{shortened(name)}: a factor of integers")
    try:
        entry.ranks([factor.shape for factor in factors])
    except MapError as error:
        raise MapError(f"{shortened(name)}: {error}") from None
