"""How weights that are given as factors travel: as DC blocks, or as tensors that the map joins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..errors import InvalidModel, InvalidOptions
from ..factorization.factor_tracker import FactorTracker, users_of
from ..factorization.factorizations import Factorization
from ..factorization.forms import FORMS, FactoredWeight
from ..model import Model, Parameter, is_signed_float
from ..options import DecodeLimits, EncodeOptions
from ..quantize.distortion import Distortion, weight_error
from ..report import TensorReport
from .grouping import Group, Grouping

Carriage = Literal["dc", "factors"]

_BLOCK_OPTIONS = ("dq", "unary_length", "scan_order")
"""What the header of a block says once for both of its factors."""


@dataclass(frozen=True, slots=True)
class CarriedWeight:
    """A weight in factors.

    Attributes:
        weight: the dense weight.
        entry: its form, and the names of its factors.
        brought: the factors that no weight before it has.
        is_block: whether it travels as the standard's DC block; else the map has the entry.
        error: of the factors' product before they are quantized, against the dense weight.
    """

    weight: Parameter
    entry: Factorization
    brought: tuple[Parameter, ...]
    is_block: bool
    error: Distortion

    @property
    def names(self) -> list[str]:
        """The names that no other tensor may have: its own, and those of the factors."""
        name, own = self.weight.name, [parameter.name for parameter in self.brought]
        return [name, *own, f"{name}_G", f"{name}_H"] if self.is_block else [name, *own]


def carry(
    model: Model,
    factorizations: Mapping[str, FactoredWeight],
    options: EncodeOptions,
    carriage: Carriage,
) -> dict[str, CarriedWeight]:
    """Return how the weights of a model that are given as factors travel, in the model's order.

    Each is read once, to be compared with what its factors make of it.

    A factor is called like its weight, with ``.factor0``, ``.factor1``, … behind it; one that is
    the same array as an earlier weight's is that one, and is coded once.

    Raises:
        InvalidModel: a weight is not in the model, is nothing that factors can stand for, or names
            collide.
        InvalidOptions: there is no such carriage.
    """
    if carriage not in ("dc", "factors"):
        raise InvalidOptions("carriage", f"{carriage!r} is neither 'dc' nor 'factors'")
    for name in factorizations:
        if name not in model:
            raise InvalidModel(name, "is given as factors, and is not in the model")
    seen: dict[int, str] = {}
    found: dict[str, CarriedWeight] = {}
    for name, parameter in model.items():
        if name in factorizations:
            factored = factorizations[name]
            _check(parameter, factored)
            entry, brought = _named(parameter, factored, seen)
            is_block = carriage == "dc" and _fits_block(factored, brought, options)
            error = weight_error(parameter.read(), factored.to_dense())
            found[name] = CarriedWeight(parameter, entry, brought, is_block, error)
    found = _without_shared_blocks(found)
    _check_names(model, found.values())
    return found


def _without_shared_blocks(carried: Mapping[str, CarriedWeight]) -> dict[str, CarriedWeight]:
    """Return weights of which none is a block whose factors a later one needs as tensors."""
    users = users_of({name: weight.entry.factors for name, weight in carried.items()})
    return {
        name: replace(weight, is_block=weight.is_block and not _is_shared(weight, users))
        for name, weight in carried.items()
    }


def _is_shared(weight: CarriedWeight, users: Mapping[str, list[str]]) -> bool:
    return any(len(users[factor]) > 1 for factor in weight.entry.factors)


def _check(parameter: Parameter, factored: FactoredWeight) -> None:
    """Check that factors can stand for a tensor, and that our own decoder takes them."""
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
        raise InvalidModel(name, f"its product takes {operations} multiplications")


def _named(
    parameter: Parameter, factored: FactoredWeight, seen: dict[int, str]
) -> tuple[Factorization, tuple[Parameter, ...]]:
    """Name the factors of a weight; note in `seen` those that later weights may share."""
    names: list[str] = []
    brought = []
    are_new = [id(factor) not in seen for factor in factored.factors]
    for index, factor in enumerate(factored.factors):
        name = seen.get(id(factor), "")
        # Each weight brings one of its factors at least, which tells its place in the stream.
        if are_new[index] or name in names or (index == 0 and not any(are_new)):
            name = f"{parameter.name}.factor{index}"
            seen.setdefault(id(factor), name)
            brought.append(Parameter.from_array(name, np.asarray(factor, np.float32)))
        names.append(name)
    dtype = parameter.dtype.name
    return Factorization(factored.form, parameter.shape, tuple(names), dtype), tuple(brought)


def _fits_block(
    factored: FactoredWeight, brought: Sequence[Parameter], options: EncodeOptions
) -> bool:
    """Whether the standard has a unit for a weight: two factors of its own, quantized alike."""
    if factored.form != "lr" or len(brought) != 2:
        return False
    own, other = (options.for_tensor(parameter.name) for parameter in brought)
    alike = all(getattr(own, name) == getattr(other, name) for name in _BLOCK_OPTIONS)
    return alike and all(options.quantizes(parameter.name) for parameter in brought)


def _check_names(model: Model, carried: Iterable[CarriedWeight]) -> None:
    """Check that no tensor of the model has a name that the factors need."""
    for weight in carried:
        for name in weight.names[1:]:
            if name in model:
                reason = f"the model has a tensor {name!r} already"
                raise InvalidModel(weight.weight.name, f"its factors cannot be named: {reason}")


def with_blocks(grouping: Grouping, carried: Mapping[str, CarriedWeight]) -> Grouping:
    """Return a grouping with the two factors of each DC block in one unit, by the roles G and H."""
    blocks: dict[str, Group] = {}
    for weight in carried.values():
        if weight.is_block:
            left, right = weight.brought
            blocks |= {left.name: {"G": left, "H": right}, right.name: {}}
    groups = (blocks.get(next(iter(group.values())).name, group) for group in grouping.groups)
    return replace(grouping, groups=[group for group in groups if group])


def merged_reports(
    reports: Iterable[TensorReport],
    carried: Mapping[str, CarriedWeight],
    errors: Mapping[str, Distortion],
) -> Iterator[TensorReport]:
    """Yield the reports of a model's tensors, one for each weight in the place of its factors'.

    `errors`: of the decoded weights, by name.
    """
    new_factors = {name: [p.name for p in weight.brought] for name, weight in carried.items()}
    factors = FactorTracker[TensorReport](new_factors)
    for report in reports:
        if report.name not in factors:
            yield report
        for name in factors.add(report.name, report):
            yield _merged(carried[name], factors.release(name), errors[name])


def _merged(
    carried: CarriedWeight, factors: Sequence[TensorReport], error: Distortion
) -> TensorReport:
    weight = carried.weight
    return TensorReport(
        weight.name,
        weight.shape,
        weight.dtype.name,
        carried.entry.form,
        weight.nbytes,
        sum(factor.bytes for factor in factors),
        qp_raised=any(factor.qp_raised for factor in factors),
        squared_error=error.squared_error,
        energy=error.energy,
        decomposition_squared_error=carried.error.squared_error,
        factors=tuple(factors),
    )
