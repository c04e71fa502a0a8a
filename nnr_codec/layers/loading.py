"""Loading a bitstream or a model file into a module, its layers dense or as factors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..decoder import Layers, Source, unwanted_roles
from ..errors import InvalidModel
from ..model import Array, is_extension
from ..options import DecodeLimits
from .factorized import SharedParameters
from .replacing import check_distinct, check_layer, replace_layer
from .sources import Bytes, TensorSource, opened, values_of

State = Mapping[str, torch.Tensor]


def load_into(
    module: nn.Module,
    source: Bytes | str | os.PathLike[str],
    layers: Layers = "factorized",
    *,
    strict: bool = True,
    parents: Sequence[Source] = (),
    limits: DecodeLimits | None = None,
) -> nn.Module:
    """Load tensors into a module, and with factors replace its layers in place.

    A layer whose weight comes as factors becomes a :class:`FactorizedLayer` with its stride,
    padding, dilation and groups, which the source does not know; its hooks go with it. Dtype,
    device and requires_grad are the old weight's. A factor that several layers share is one
    parameter of all of them. All other tensors are copied into the module's. Everything that the
    headers tell is checked before anything is changed; a payload that turns out to be damaged
    leaves the module partly loaded.

    Args:
        module: a module with the tensors and layers of the source, as the model had them before it
            was decomposed.
        source: a bitstream (bytes or a path), or the path of a model file, dense or of factors
            (``nnr-decode --layers factorized``).
        layers: "factorized", or "dense": weights are formed from their factors, and no layer is
            replaced.
        strict: refuse tensors that only one of source and module has.
        parents: of a bitstream, the earlier streams of its series, oldest first.
        limits: what the source may ask for; by default ``DecodeLimits()``.

    Returns:
        The module.

    Raises:
        InvalidModel: the module disagrees: a tensor is missing, or has another shape, or a layer
            is of a kind that its factors cannot stand for; the message names it. Or the file is
            damaged.
        BitstreamError: the bitstream is damaged, or asks for what is not supported or allowed.
        InvalidOptions: an option has no such value.

    >>> import nnr_codec
    >>> from nnr_codec.factorization.forms import LowRank
    >>> weight = LowRank((16, 32), (np.ones((16, 2), np.float32), np.ones((2, 32), np.float32)))
    >>> model = {"0.weight": weight.to_dense(), "0.bias": np.zeros(16, np.float32)}
    >>> data = nnr_codec.encode(model, factorizations={"0.weight": weight}).data
    >>> module = load_into(nn.Sequential(nn.Linear(32, 16)), data)
    >>> [name for name, _ in module.named_parameters()]
    ['0.reduce.weight', '0.expand.weight', '0.expand.bias']
    """
    unwanted_roles(layers)
    with opened(source, layers, parents, limits) as tensors:
        state = module.state_dict(keep_vars=True)
        _check(module, state, tensors, layers, strict)
        _load(module, state, tensors, layers)
    return module


def _check(
    module: nn.Module, state: State, tensors: TensorSource, layers: Layers, strict: bool
) -> None:
    """Check all that can be known before tensors are read."""
    weights = tensors.factorizations
    factors = {factor for entry in weights.values() for factor in entry.factors}
    shapes = {p.name: p.shape for p in tensors.parameters if p.name not in factors}
    shapes |= {name: entry.shape for name, entry in weights.items()}
    for name, shape in shapes.items():
        if name in state and tuple(state[name].shape) != shape:
            found = tuple(state[name].shape)
            raise InvalidModel(name, f"has the shape {shape}, and {found} in the module")
    if strict:
        _check_names(state, shapes, tensors.name)
    if layers == "factorized":
        ranks = _ranks(tensors)
        for name, entry in weights.items():
            if name in state:
                check_layer(module, name, entry.form, entry.shape, ranks[name])
        check_distinct(module, [name for name in weights if name in state])


def _check_names(state: State, shapes: Mapping[str, Any], source: str) -> None:
    for name in shapes:
        if name not in state:
            raise InvalidModel(name, f"is in {source!r}, and the module has no such tensor")
    loaded = {id(state[name]) for name in shapes}
    for name, tensor in state.items():
        if name not in shapes and id(tensor) not in loaded:  # of tied ones one is enough
            raise InvalidModel(name, f"is in the module, and not in {source!r}")


def _ranks(tensors: TensorSource) -> dict[str, tuple[int, ...]]:
    shapes = {parameter.name: parameter.shape for parameter in tensors.parameters}
    return {
        name: entry.ranks([shapes[factor] for factor in entry.factors])
        for name, entry in tensors.factorizations.items()
    }


@torch.no_grad()
def _load(module: nn.Module, state: State, tensors: TensorSource, layers: Layers) -> None:
    weights = tensors.factorizations
    users: dict[str, list[str]] = {}
    for name, entry in weights.items():
        for factor in entry.factors:
            users.setdefault(factor, []).append(name)
    missing = {name: len(entry.factors) for name, entry in weights.items()}
    factors: dict[str, Array] = {}
    shared: SharedParameters = {}
    for name, values in values_of(tensors):
        if name not in users:
            if name in state:
                _copy(state[name], values)
            continue
        factors[name] = values
        for weight in users[name]:
            missing[weight] -= 1
            if missing[weight] or weight not in state:
                continue
            entry = weights[weight]
            own = [factors[factor] for factor in entry.factors]
            if layers == "dense":
                _copy(state[weight], entry.dense(own))
            else:
                replace_layer(module, weight, entry.weight(own), entry.factors, shared)


def _copy(target: torch.Tensor, values: Array) -> None:
    if is_extension(values.dtype):  # numpy has them from elsewhere; binary32 holds all their values
        values = values.astype(np.float32)
    target.copy_(torch.from_numpy(np.array(values)))
