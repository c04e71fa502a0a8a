"""How the tensors of a model are made of what one stream, or a base and its updates, hold.

spec/model_map.md, "Updates of a base", has the definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ...bitstream import DataUnit
from ...errors import LimitExceeded
from ...factorization.factorizations import Factorization, factors_of
from ...factorization.forms import FORMS
from ...model import Array
from ...options import DecodeLimits
from ..finishing import recomposed
from .coded_piece import CodedPiece, Summand
from .open_stream import OpenStream, QuantizerStep, StreamTensor


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """A tensor of a model.

    Attributes:
        shape, dtype: its own.
        role: "coded": it is a piece; "dense": made of factors; "tied"; or "empty".
        entry: of a dense one, what it is made of.
        tied_to: of a tied one, the tensor whose values it shares.
        operations: multiplications of the product that it is, or is a sum with; 0: of none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    role: str
    entry: Factorization | None = None
    tied_to: str | None = None
    operations: int = 0

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the factors that it is made of; none, but of a dense one."""
        return () if self.entry is None else self.entry.factors


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

    def check(self, limits: DecodeLimits, merges: int) -> None:
        """Check what decoding the model takes; `merges`: how many updates are in it.

        Raises:
            LimitExceeded: it is more than is allowed.
        """
        operations = [tensor.operations for tensor in self.tensors.values()]
        for limit, value in (
            ("max_header_entries", merges * len(self.tensors)),  # each merge lists all tensors
            ("max_elements", self.elements),
            ("max_product_operations", max(operations, default=0)),
            ("max_all_product_operations", sum(operations)),
        ):
            allowed = getattr(limits, limit)
            if value > allowed:
                raise LimitExceeded(limit, value, allowed)

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
        return CodedPiece(tensor.shape, tensor.dtype, (product,), tensor.operations)

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
    blocks = _block_operations(stream)
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
            own = replace(entry, factors=factors)
            operations = product_operations(own, [pieces[factor] for factor in factors])
            tensors[name] = ModelTensor(shape, dtype, "dense", own, operations=operations)
            if factors != entry.factors:
                products[name] = tensor.lazy.read
        else:
            operations = blocks.get(name, 0)  # of a product that no entry describes
            pieces.setdefault(name, replace(_piece(stream, tensor), operations=operations))
            tensors[name] = ModelTensor(shape, dtype, "coded", operations=operations)
    return Composition(used_pieces(pieces, tensors), tensors, products, stream.stream.metadata)


def used_pieces(
    pieces: Mapping[str, CodedPiece], tensors: Mapping[str, ModelTensor]
) -> dict[str, CodedPiece]:
    """Return the coded tensors of a model, and the factors of its weights: what an update can be
    added to."""
    used = {name for tensor in tensors.values() for name in tensor.factors}
    used.update(name for name, tensor in tensors.items() if tensor.role == "coded")
    return {name: piece for name, piece in pieces.items() if name in used}


def product_operations(entry: Factorization, factors: Iterable[CodedPiece]) -> int:
    """Return the multiplications of a product; raises MapError if the factors do not fit it."""
    ranks = entry.ranks([factor.shape for factor in factors])
    return FORMS[entry.form].product_operations(entry.shape, ranks)


def _block_operations(stream: OpenStream) -> dict[str, int]:
    """Return the multiplications of the products of decomposed blocks, by the weight's name."""
    records = [unit.record for unit, _ in stream.data_units()]
    return {
        record.dense_name: record.decomposition_rank * record.element_count
        for record in records
        if isinstance(record, DataUnit) and record.is_decomposed_block
    }


def _piece(stream: OpenStream, tensor: StreamTensor) -> CodedPiece:
    values, lazy = tensor.outline.values, tensor.lazy
    is_coded = lazy.role != "dense"
    step = partial(stream.step, lazy.name) if is_coded else QuantizerStep
    summand = Summand(lazy.read, step, stream.units_of(lazy.name))
    return CodedPiece(values.shape, values.dtype, (summand,))
