"""Which tensors of a model go into one BLOCK unit: a layer's weight, bias and batch norm.

Layers are recognized by names. PyTorch: ``X.weight``, ``X.bias``, and a batch norm's ``Y.weight``,
``Y.bias``, ``Y.running_mean``, ``Y.running_var``. Keras: ``X/kernel``, ``X/bias``, ``X/gamma`` and
so on, as long as the kernel's first dimension, and not its last, is that of the outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

from ...factorization.tensor_order import BLOCK_ROLES, TensorOrder
from ...model import Parameter

Group = dict[str, Parameter]
"""The tensors of one data unit by role; a weight alone is a unit of the usual kind."""

_WEIGHTS = ("weight", "kernel")
_NORM_ROLES = ("beta", "gamma", "mean", "var")
_NORMS = (
    {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"},
    {"gamma": "gamma", "beta": "beta", "mean": "moving_mean", "var": "moving_variance"},
)
_HEADER_ORDER = tuple(role for role in BLOCK_ROLES if role != "local_scaling")

SAVED_BYTES = 6
"""What a vector saves at least in a block: its unit's header and its codeword's end.

The map's bytes for the order, which are certain, are weighed against it."""

USUALLY_SAVED_BYTES = 8
"""What a vector saves as a rule, against what else would make it smaller by itself."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """The data units of a model.

    Attributes:
        groups: the tensors of each unit, in stream order.
        order: the order of the model's tensors, if it is not the stream's.
    """

    groups: list[Group]
    order: TensorOrder = field(default_factory=TensorOrder)


def ungrouped(parameters: Iterable[Parameter]) -> Grouping:
    """Return a grouping with a unit for each tensor."""
    return Grouping([{"weight": parameter} for parameter in parameters])


def group_layers(
    parameters: Sequence[Parameter],
    may_join: Callable[[Parameter, Parameter], bool],
    map_bytes: Callable[[TensorOrder], int],
    by_name: bool = True,
) -> Grouping:
    """Return the grouping that saves most, with an order that takes few bytes in the map.

    Args:
        parameters: what is coded, in the order of the model.
        may_join: whether a vector can be in one block with a weight, by their options.
        map_bytes: bytes that the model map takes for an order.
        by_name: whether the units may be in the order of the names.
    """
    layers = layers_of(parameters, may_join)
    candidates = [ungrouped(parameters), _in_role_order(parameters, layers)]
    names = [parameter.name for parameter in parameters]
    if by_name and names == sorted(names):
        groups = _grouped(parameters, layers)
        groups.sort(key=lambda group: min(parameter.name for parameter in group.values()))
        candidates.append(Grouping(groups, TensorOrder(by_name=True)))
    return max(candidates, key=lambda g: _saving(g) - map_bytes(g.order))


def alone_by_name(names: Collection[str]) -> Callable[[Parameter], bool]:
    """Return what tells by the names of a model that a tensor shares its unit with no other."""
    variances = tuple(norm["var"] for norm in _NORMS)
    has_norms = any(_split(name)[1] in variances for name in names)

    def is_alone(parameter: Parameter) -> bool:
        if len(parameter.shape) > 1 and has_norms:
            return _split(parameter.name)[1] not in _WEIGHTS
        others = _siblings(parameter.name, (*_WEIGHTS, "bias", *variances))
        return not any(other in names for other in others)

    return is_alone


def _saving(grouping: Grouping) -> int:
    return SAVED_BYTES * sum(len(group) - 1 for group in grouping.groups)


def layers_of(
    parameters: Sequence[Parameter], may_join: Callable[[Parameter, Parameter], bool]
) -> list[Group]:
    """Return what belongs together, wherever it stands: weights with one vector or more."""
    by_name = {parameter.name: parameter for parameter in parameters}
    layers: dict[str, Group] = {}
    for parameter in parameters:
        stem, suffix = _split(parameter.name)
        if suffix not in _WEIGHTS or f"{stem}running_var" in by_name:
            continue
        layer = layers[stem] = {"weight": parameter}
        bias = by_name.get(_sibling(parameter.name, "bias"))
        if bias is not None and _fits(parameter, bias) and may_join(parameter, bias):
            layer["bias"] = bias
    positions = _positions(parameters)
    for stem, norm in norms_of(by_name):
        first = min(positions[vector.name] for vector in norm.values())
        before = _split(parameters[first - 1].name)[0] if first else None
        layer = _layer_of(norm, layers, [*_convolution_stems(stem), before])
        weight = layer.get("weight")
        if weight is not None and all(may_join(weight, vector) for vector in norm.values()):
            layer.update(norm)
    return [layer for layer in layers.values() if len(layer) > 1]


def _split(name: str) -> tuple[str, str]:
    """Return the name up to its last separator, and the rest without TensorFlow's ":0"."""
    stem, suffix = re.fullmatch(r"(?s:(.*[./])?(.*?)(?::0)?)", name).groups()  # type: ignore[union-attr]
    return stem or "", suffix


def _siblings(name: str, suffixes: Iterable[str]) -> Iterator[str]:
    """Yield the name with each of the suffixes that is not its own."""
    stem, own = _split(name)
    end = name[len(stem) + len(own) :]
    return (stem + suffix + end for suffix in suffixes if suffix != own)


def weights_of_bias(name: str) -> Iterator[str]:
    """Yield what the weight may be called whose outputs a bias is added to."""
    if _split(name)[1] in ("bias", "beta"):
        yield from _siblings(name, (*_WEIGHTS, "gamma"))


def _sibling(name: str, suffix: str) -> str:
    return next(_siblings(name, (suffix,)), name)


def _fits(weight: Parameter, vector: Parameter) -> bool:
    """Whether a vector has an element for each row of the weight."""
    if len(vector.shape) != 1 or vector.shape != weight.shape[:1]:
        return False
    is_kernel = _split(weight.name)[1] == "kernel"
    return not (is_kernel and weight.shape[-1] == vector.shape[0])


def norms_of(by_name: Mapping[str, Parameter]) -> Iterator[tuple[str, Group]]:
    """Yield the batch norms: their stem, and their vectors by role, all of one length."""
    for name in by_name:
        stem, suffix = _split(name)
        for names in _NORMS:
            if suffix != names["var"]:
                continue
            norm = {role: by_name.get(_sibling(name, names[role])) for role in _NORM_ROLES}
            vectors = {role: vector for role, vector in norm.items() if vector is not None}
            if len(vectors) == len(names) and len({v.shape for v in vectors.values()}) == 1:
                yield stem, vectors


def _layer_of(norm: Group, layers: Mapping[str, Group], candidates: Iterable[str | None]) -> Group:
    """Return the first layer of these stems that a batch norm fits; else nothing."""
    for candidate in candidates:
        layer = layers.get(candidate or "", {})
        weight = layer.get("weight")
        if weight is None or "beta" in layer or len(weight.shape) < 2:
            continue
        if all(_fits(weight, vector) for vector in norm.values()):
            return layer
    return {}


def _convolution_stems(stem: str) -> Iterator[str]:
    """Yield what the convolution before a batch norm may be called."""
    yield stem
    for norm, convolution in (("bn", "conv"), ("norm", "conv"), ("bn", "")):
        head, separator, tail = stem.rpartition(norm)
        if separator:
            yield head + convolution + tail
    head, _, tail = stem.rpartition("batch_normalization")
    yield f"{head}conv2d{tail}"
    number = re.fullmatch(r"(.*?)(\d+)([./])", stem, re.DOTALL)
    if number and int(number[2]):
        yield f"{number[1]}{int(number[2]) - 1}{number[3]}"


def _grouped(parameters: Sequence[Parameter], layers: Iterable[Group]) -> list[Group]:
    """Return the layers and the other tensors as units, each where its first tensor stands."""
    owner = {vector.name: layer for layer in layers for vector in layer.values()}
    groups: dict[str, Group] = {}
    for parameter in parameters:
        group = owner.get(parameter.name, {"weight": parameter})
        groups.setdefault(group["weight"].name, group)
    return list(groups.values())


def _in_role_order(parameters: Sequence[Parameter], layers: Iterable[Group]) -> Grouping:
    """Group layers whose tensors stand together, in the order of roles that fits most of them."""
    positions = _positions(parameters)
    together = [part for layer in layers if (part := _together(layer, positions))]
    counts: dict[tuple[str, ...], int] = {}
    for layer in together:
        sequence = _roles_in_order(layer, positions)
        counts[sequence] = counts.get(sequence, 0) + len(sequence) - 1
    if not counts:
        return ungrouped(parameters)
    order = _most_common_order(counts)
    fitting = [layer for layer in together if _is_within(_roles_in_order(layer, positions), order)]
    used = {role for layer in fitting for role in layer}
    roles = tuple(role for role in order if role in used)
    header_roles = tuple(role for role in BLOCK_ROLES if role in used)
    told = () if roles == header_roles else roles
    return Grouping(_grouped(parameters, fitting), TensorOrder(roles=told))


def _positions(parameters: Sequence[Parameter]) -> dict[str, int]:
    return {parameter.name: position for position, parameter in enumerate(parameters)}


def _most_common_order(counts: Mapping[tuple[str, ...], int]) -> tuple[str, ...]:
    """Return the order of roles in which most sequences are, each counted so often."""
    best: tuple[str, ...] = _HEADER_ORDER
    most = -1
    for order in permutations(_HEADER_ORDER):  # the header's own first: it needs no word in the map
        count = sum(n for sequence, n in counts.items() if _is_within(sequence, order))
        if count > most:
            best, most = order, count
        if most == sum(counts.values()):
            break
    return best


def _together(layer: Group, positions: Mapping[str, int]) -> Group:
    """Return the layer, or what of it stands without a gap: with the bias, or the batch norm."""
    for roles in (BLOCK_ROLES, ("weight", *_NORM_ROLES), ("weight", "bias")):
        part = {role: layer[role] for role in roles if role in layer}
        span = sorted(positions[vector.name] for vector in part.values())
        if len(part) > 1 and span[-1] - span[0] == len(part) - 1:
            return part
    return {}


def _roles_in_order(layer: Group, positions: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(sorted(layer, key=lambda role: positions[layer[role].name]))


def _is_within(sequence: Sequence[str], roles: Sequence[str]) -> bool:
    """Whether roles come one after the other in `roles`."""
    ranks = [roles.index(role) for role in sequence]
    return ranks == sorted(ranks)
