"""How an update and its base are put together, by what their headers say.

spec/model_map.md, "Updates of a base", has the definition. No factor is made of a product, so that
what a tensor takes to decode grows with the bytes of the streams, and does not double with each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Set
from dataclasses import replace

from ...errors import InvalidBitstream
from ...factorization.base_entry import BaseEntry
from ...factorization.factorizations import Factorization
from ...factorization.map_checks import MapError, shortened
from ...model import Array, is_signed_float
from .coded_piece import CodedPiece
from .composition import Composition, ModelTensor, product_operations, used_pieces
from .sums import check_sum


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
        tensors = self._tensors()
        pieces = used_pieces({**self._base.pieces, **coded}, tensors)
        replaced = coded.keys() | self._update.tensors.keys()
        products = {
            name: form
            for name, form in self._base.products.items()
            if name in tensors
            and name not in replaced
            and replaced.isdisjoint(tensors[name].factors)
        }
        products |= self._new_products()
        _check_factors(tensors, pieces)
        checked = _checked(tensors, pieces, replaced)
        return Composition(pieces, checked, products, self._update.metadata)

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
        added = [summand._replace(xor=xor) for summand in own.summands]
        operations = base.operations + own.operations
        return replace(base, summands=(*base.summands, *added), operations=operations)

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
        factors = {name for weight in stay for name in self._base.tensors[weight].factors}
        for name, tensor in own.items():
            if tensor.role != "coded" or name in self._base.tensors or name not in factors:
                yield name, tensor

    def _new_products(self) -> dict[str, Callable[[], Array]]:
        """Return what forms the weights of blocks of the update that are not sums."""
        return {
            name: form
            for name, form in self._update.products.items()
            if not any(
                self._base.piece(factor) is not None and factor not in self._entry.whole
                for factor in self._update.tensors[name].factors
            )
        }


def _check_factors(tensors: Mapping[str, ModelTensor], pieces: Mapping[str, CodedPiece]) -> None:
    """Check that the name of a factor stands for it alone, and that none is made of a product."""
    for name in (name for tensor in tensors.values() for name in tensor.factors):
        if name in tensors and tensors[name].role != "coded":
            raise MapError(f"base: {shortened(name)} is a factor, and a tensor that is not coded")
        if pieces[name].operations:
            raise MapError(f"base: the factor {shortened(name)} is a sum with a product")


def _checked(
    tensors: Mapping[str, ModelTensor],
    pieces: Mapping[str, CodedPiece],
    replaced: Set[str],
) -> dict[str, ModelTensor]:
    """Return the tensors with the shapes and types of what they are made of.

    `replaced`: names of all that the update holds; other coded tensors are as they were.
    """
    done: dict[str, ModelTensor] = {}
    for name, tensor in tensors.items():
        if tensor.tied_to is not None:
            first = done.get(tensor.tied_to)
            if first is None or first.role in ("tied", "empty"):
                reason = f"{shortened(name)} is tied to what is no tensor before it"
                raise MapError(f"base: {reason}")
            if (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
                tensor = replace(tensor, shape=first.shape, dtype=first.dtype)
        elif tensor.entry is not None:
            if name in replaced or not replaced.isdisjoint(tensor.factors):
                operations = _checked_operations(name, tensor.entry, pieces)
                tensor = replace(tensor, operations=operations)
        elif name in replaced and tensor.role == "coded":
            piece = pieces[name]
            tensor = replace(
                tensor, shape=piece.shape, dtype=piece.dtype, operations=piece.operations
            )
        done[name] = tensor
    return done


def _checked_operations(name: str, entry: Factorization, pieces: Mapping[str, CodedPiece]) -> int:
    """Return the multiplications of a weight's product, whose factors are checked."""
    factors = [pieces[factor] for factor in entry.factors]
    if not all(is_signed_float(factor.dtype) for factor in factors):
        raise MapError(f"{shortened(name)}: a factor of integers")
    try:
        return product_operations(entry, factors)
    except MapError as error:
        raise MapError(f"{shortened(name)}: {error}") from None
