"""How weights that are given as factors travel: as DC blocks, or as tensors that the map joins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InvalidModel
from ..factorization.factor_tracker import users_of
from ..factorization.factorizations import Factorization
from ..factorization.forms import FORMS, FactoredWeight
from ..model import Model, Parameter, is_signed_float
from ..options import DecodeLimits, EncodeOptions

_BLOCK_OPTIONS = ("dq", "unary_length", "scan_order")
"""What the header of a block says once for both of its factors."""


@dataclass(frozen=True, slots=True)
class FactorTransport:
    """How a weight travels as factors.

    Attributes:
        weight: the dense weight.
        factored: the same in factors, as they were given.
        entry: its form, and the names of its factors.
        new_factors: the factors that no weight before it has.
        is_block: whether it travels as the standard's DC block; else the map has the entry.
    """

    weight: Parameter
    factored: FactoredWeight
    entry: Factorization
    new_factors: tuple[Parameter, ...]
    is_block: bool

    @property
    def names(self) -> list[str]:
        """The names that no other tensor may have: of the weight and of its new factors."""
        name = self.weight.name
        names = [name, *(factor.name for factor in self.new_factors)]
        return [*names, f"{name}_G", f"{name}_H"] if self.is_block else names


def transport_factors(
    model: Model, factorizations: Mapping[str, FactoredWeight], options: EncodeOptions
) -> dict[str, FactorTransport]:
    """Return how the weights of a model that are given as factors travel, in the model's order.

    A factor is called like its weight, with ``.factor0``, ``.factor1``, … behind it; one that is
    the same array as an earlier weight's is that one, and is coded once.

    Raises:
        InvalidModel: a weight is not in the model, is nothing that factors can stand for, or names
            collide.
    """
    for name in factorizations:
        if name not in model:
            raise InvalidModel(name, "is given as factors, and is not in the model")
    as_blocks = options.decomposition.carriage == "dc"
    known_factors: dict[int, str] = {}
    transports: dict[str, FactorTransport] = {}
    for name, parameter in model.items():
        if name in factorizations:
            factored = factorizations[name]
            _check(parameter, factored)
            entry, new = _named(parameter, factored, known_factors)
            is_block = as_blocks and _fits_block(factored, new, options)
            transports[name] = FactorTransport(parameter, factored, entry, new, is_block)
    transports = _without_shared_blocks(transports)
    _check_names(model, transports.values())
    return transports


def _without_shared_blocks(
    transports: Mapping[str, FactorTransport],
) -> dict[str, FactorTransport]:
    """Return weights of which none is a block whose factors a later one needs as tensors."""
    users = users_of({name: weight.entry.factors for name, weight in transports.items()})
    alone = {factor for factor, weights in users.items() if len(weights) == 1}
    return {
        name: replace(weight, is_block=weight.is_block and alone.issuperset(weight.entry.factors))
        for name, weight in transports.items()
    }


def _check(parameter: Parameter, factored: FactoredWeight) -> None:
    """Check that factors can stand for a tensor, within the default limits of decoders."""
    name, limits = parameter.name, DecodeLimits()
    if factored.form not in FORMS:
        raise InvalidModel(name, f"unknown form {factored.form!r}")
    if factored.shape != parameter.shape:
        reason = f"has the shape {parameter.shape}, its factors are those of {factored.shape}"
        raise InvalidModel(name, reason)
    if not is_signed_float(parameter.dtype):
        raise InvalidModel(name, f"factors cannot stand for a tensor of {parameter.dtype}")
    if parameter.tied_to is not None:
        raise InvalidModel(name, f"is tied to {parameter.tied_to!r}, which would have the factors")
    if parameter.size > limits.max_elements_per_tensor:
        raise InvalidModel(name, f"has more than {limits.max_elements_per_tensor} elements")
    operations = type(factored).product_operations(factored.shape, factored.ranks)
    if operations > limits.max_product_operations:
        raise InvalidModel(name, f"its product needs {operations} multiplications")


def _named(
    parameter: Parameter, factored: FactoredWeight, known_factors: dict[int, str]
) -> tuple[Factorization, tuple[Parameter, ...]]:
    """Name the factors of a weight, and return those that are new.

    `known_factors` has the names of those that later weights may share, by the array's identity.
    """
    names: list[str] = []
    new = []
    are_new = [id(factor) not in known_factors for factor in factored.factors]
    for index, factor in enumerate(factored.factors):
        name = known_factors.get(id(factor), "")
        # Each weight has at least one new factor, whose position in the stream is the weight's.
        if are_new[index] or name in names or (index == 0 and not any(are_new)):
            name = f"{parameter.name}.factor{index}"
            known_factors.setdefault(id(factor), name)
            new.append(Parameter.from_array(name, np.asarray(factor, np.float32)))
        names.append(name)
    dtype = parameter.dtype.name
    return Factorization(factored.form, parameter.shape, tuple(names), dtype), tuple(new)


def _fits_block(
    factored: FactoredWeight, factors: Sequence[Parameter], options: EncodeOptions
) -> bool:
    """Whether the standard has a unit for a weight: two factors, both new, quantized alike."""
    if factored.form != "lr" or len(factors) != 2:
        return False
    left, right = (options.for_tensor(parameter.name) for parameter in factors)
    alike = all(getattr(left, name) == getattr(right, name) for name in _BLOCK_OPTIONS)
    return alike and all(options.quantizes(parameter.name) for parameter in factors)


def _check_names(model: Model, transports: Iterable[FactorTransport]) -> None:
    """Check that no tensor of the model has a name that the factors need."""
    for transport in transports:
        for name in transport.names[1:]:
            if name in model:
                reason = f"the model has a tensor {name!r} already"
                raise InvalidModel(transport.weight.name, f"its factors cannot be named: {reason}")
