"""Values of tensors that no data unit holds as they are: joined, multiplied, tied, empty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ..errors import InvalidBitstream, LimitExceeded
from ..factorization.extras import Extra
from ..factorization.factorizations import Factorization
from ..factorization.map_checks import MapError
from ..factorization.tensor_rules import TensorRule, apply_rule
from ..model import Array
from .unit_decoder import DecodedTensor


class ValueMaker:
    """Makes decoded tensors of decoded tensors, or outlines of outlines, which have no values."""

    def __init__(self, outlines: bool = False) -> None:
        """`outlines`: values are zeros that take no memory."""
        self._outlines = outlines

    def join(
        self, tensor: DecodedTensor, rule: TensorRule, part: DecodedTensor | None
    ) -> DecodedTensor:
        """Return a tensor made complete by its part; raises what `joined` raises."""
        if self._outlines:
            return tensor  # it is that of the whole already
        part_values = None if part is None else part.values
        return replace(tensor, values=joined(tensor.name, rule, tensor.values, part_values))

    def product(
        self, weight: str, entry: Factorization, factors: Sequence[DecodedTensor]
    ) -> DecodedTensor:
        """Return a weight made of factors; raises what `recomposed` raises."""
        if self._outlines:
            return DecodedTensor(weight, "dense", entry.outlined())
        values = recomposed(weight, entry, [factor.values for factor in factors])
        return DecodedTensor(weight, "dense", values)

    def extra(self, extra: Extra, first: DecodedTensor | None) -> DecodedTensor:
        """Return an empty tensor, or one whose values are those of `first`."""
        if first is None:
            return DecodedTensor(extra.name, "empty", extra.empty())
        return DecodedTensor(extra.name, "tied", first.values, tied_to=first.name)


def joined(name: str, rule: TensorRule, values: Array, part: Array | None) -> Array:
    """Return the values of tensor `name`, which is made of itself and a part.

    Raises:
        InvalidBitstream: the map does not fit them, or the part is None.
        LimitExceeded: they do not fit the memory.
    """
    with _map_errors(f"tensor {name!r}", values.size):
        return apply_rule(rule, values, part)


def recomposed(name: str, entry: Factorization, factors: Sequence[Array]) -> Array:
    """Return the values of weight `name` of its factors, in their order; raises like `joined`."""
    with _map_errors(f"weight {name!r}", entry.elements):
        return entry.dense(factors)


@contextmanager
def _map_errors(what: str, elements: int) -> Iterator[None]:
    """Turn errors of the map, and memory that runs out, into those of a bitstream."""
    try:
        yield
    except MemoryError:
        raise LimitExceeded("memory of this machine, in elements", elements, 0) from None
    except MapError as error:
        raise InvalidBitstream("model map", 0, f"{what}: {error}") from None
