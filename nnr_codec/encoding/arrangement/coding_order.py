"""The order in which tensors are coded, and so decoded: by first use, size or name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from ...errors import InvalidOptions
from ...model import Model, Parameter
from ...options.encode_options import Order
from .grouping import layers_of

_Together = list[Parameter]
"""Parameters that stay together, in order."""


def in_coding_order(model: Model, order: Order, execution: Sequence[str] = ()) -> Model:
    """Return a model with its parameters in the order in which they are to be coded.

    What is equal in the order stays as it was. A tensor is followed by those that are tied to it;
    by size and execution, a layer's weight, bias and batch norm, which may share a unit, stay
    together too, in the order that they had.

    Args:
        model: the model, in the order of its file.
        order: "file": as it is; "size": smallest first, in elements of what stays together;
            "name": by the code points of names; "execution": as they are first used.
        execution: names of tensors as they are used, the first of them first. Of what stays
            together the first one counts; what is not there comes last.

    Raises:
        InvalidOptions: none of the names of `execution` is one of the model's.
    """
    if order == "file":
        return model
    if order == "execution" and not set(execution) & set(model.names()):
        reason = "'execution', but the module uses no tensor of the model: is it another network's?"
        raise InvalidOptions("order", reason)
    families = _families(model.values())
    if order == "name":
        together = sorted(families, key=lambda family: family[0].name)
    else:
        key = _elements if order == "size" else _first_use(execution)
        together = sorted(_layers(families), key=key)
    return model.with_parameters(parameter for group in together for parameter in group)


def _families(parameters: Iterable[Parameter]) -> list[_Together]:
    """Return each parameter that is tied to no other, with those that are tied to it."""
    families: dict[str, _Together] = {}
    for parameter in parameters:
        if parameter.tied_to is None:
            families[parameter.name] = [parameter]
        else:
            families[parameter.name] = families[parameter.tied_to]
            families[parameter.name].append(parameter)
    return [family for name, family in families.items() if family[0].name == name]


def _layers(families: Iterable[_Together]) -> list[_Together]:
    """Return the families with those of a layer as one, where its first one stands."""
    by_name = {family[0].name: family for family in families}
    coded = [family[0] for family in by_name.values() if family[0].size]
    layers = layers_of(coded, lambda weight, vector: True)
    first_of = {p.name: layer["weight"].name for layer in layers for p in layer.values()}
    together: dict[str, _Together] = {}
    for name, family in by_name.items():
        together.setdefault(first_of.get(name, name), []).extend(family)
    return list(together.values())


def _elements(group: _Together) -> float:
    return sum(parameter.size for parameter in group if parameter.tied_to is None)


def _first_use(execution: Sequence[str]) -> Callable[[_Together], float]:
    """Return a function that tells when the first of a group is used."""
    positions = {name: position for position, name in enumerate(execution)}
    return lambda group: min(positions.get(parameter.name, math.inf) for parameter in group)
