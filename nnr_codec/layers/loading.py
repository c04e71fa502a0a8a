"""Loading a bitstream or a model file into a module, its layers dense or as factors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..decoding.stream_decoder import Bytes, Source
from ..decoding.stream_map import Layers, Selection
from ..errors import InvalidModel, NnrWarning
from ..factorization.factor_tracker import FactorTracker
from ..factorization.factorizations import factors_of
from ..model import Array, is_extension
from ..options import DecodeLimits
from .factorized import SharedParameters, factored
from .replacing import check_distinct, check_shape, layer_of, replace_layer
from .sources import TensorSource, opened

_MOST_NAMED = 8

State = Mapping[str, torch.Tensor]


def load_into(
    module: nn.Module,
    source: Bytes | str | os.PathLike[str],
    layers: Layers = "factorized",
    *,
    strict: bool = True,
    base: Sequence[Source] = (),
    parents: Sequence[Source] = (),
    limits: DecodeLimits | None = None,
) -> nn.Module:
    """Load tensors into a module, and with factors replace its layers in place.

    A layer whose weight comes as factors becomes a :class:`FactorizedLayer` with its stride,
    padding, dilation and groups, which the source does not know; hooks of the old layer are lost.
    Dtype, device and requires_grad are the old weight's. A factor that several layers share is one
    parameter of all of them. All other tensors are copied into the module's; to a layer that is
    tied to a weight in factors, their product is. What the headers tell is checked before anything
    is changed; a payload that turns out to be damaged leaves the module partly loaded.

    Args:
        module: a module with the tensors and layers of the source, as the model had them before it
            was decomposed.
        source: a bitstream (bytes or a path), or the path of a model file, dense or of factors
            (``nnr-decode --layers factorized``).
        layers: "factorized", or "dense": weights are formed from their factors, and no layer is
            replaced.
        strict: refuse tensors that only one of source and module has; else they are named in
            warnings (`NnrWarning`). The counters of batch norm
            (`num_batches_tracked`) may be missing, and of tied tensors all but one.
        base: of an update, the streams that it was made against, oldest first.
        parents: of a bitstream, the earlier streams of its series, oldest first.
        limits: what the source may ask for; by default ``DecodeLimits()``.

    Returns:
        The module.

    Raises:
        InvalidModel: the module disagrees: a tensor is missing, has another shape or no memory for
            values, or a layer is of a kind that its factors cannot stand for; the message names
            it. Or the file is damaged.
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
    Selection(layers)  # checks them
    with opened(source, layers, parents, limits, base) as tensors:
        state = module.state_dict(keep_vars=True)
        _check(state, tensors, strict)
        replaced = _layers(module, state, tensors) if layers == "factorized" else {}
        _load(module, state, tensors, replaced)
    return module


def _check(state: State, tensors: TensorSource, strict: bool) -> None:
    """Check names and shapes, before tensors are read."""
    weights = tensors.factorizations
    factors = {factor for entry in weights.values() for factor in entry.factors}
    shapes = {p.name: p.shape for p in tensors.parameters if p.name not in factors}
    shapes |= {name: entry.shape for name, entry in weights.items()}
    for name, shape in shapes.items():
        if name in state:
            check_shape(name, shape, state[name])
            if state[name].is_meta:
                reason = "is on the device 'meta' in the module: use to_empty first"
                raise InvalidModel(name, reason)
    differences = list(_differences(state, shapes, tensors.name))
    if strict and differences:
        raise InvalidModel(*differences[0])
    for name, reason in differences[:_MOST_NAMED]:
        warnings.warn(f"{name!r} {reason}", NnrWarning, stacklevel=3)
    if len(differences) > _MOST_NAMED:
        more = len(differences) - _MOST_NAMED
        warnings.warn(f"{more} more tensors are in one of both alone", NnrWarning, stacklevel=3)


def _differences(state: State, shapes: Mapping[str, Any], source: str) -> Iterator[tuple[str, str]]:
    """Yield the names of tensors that only the module or the source has, and where they are."""
    for name in shapes:
        if name not in state:
            yield name, f"is in {source!r}, and the module has no such tensor"
    loaded = {id(state[name]) for name in shapes if name in state}
    for name, tensor in state.items():
        is_counter = name.rpartition(".")[2] == "num_batches_tracked"
        if name not in shapes and id(tensor) not in loaded and not is_counter:
            yield name, f"is in the module, and not in {source!r}"


def _layers(module: nn.Module, state: State, tensors: TensorSource) -> dict[str, nn.Module]:
    """Return the layers to replace, by the names of their weights, all of which fit."""
    shapes = {parameter.name: parameter.shape for parameter in tensors.parameters}
    layers = {}
    for name, entry in tensors.factorizations.items():
        if name in state:
            ranks = entry.ranks([shapes[factor] for factor in entry.factors])
            layers[name] = layer_of(module, name, entry.form, entry.shape, ranks)
    check_distinct(module, layers)
    return layers


@torch.no_grad()
def _load(
    module: nn.Module, state: State, tensors: TensorSource, layers: Mapping[str, nn.Module]
) -> None:
    """Read the tensors one after the other; `layers`: to replace, by the names of the weights."""
    weights = tensors.factorizations
    tracker = FactorTracker[Array](factors_of(weights), state.__contains__)
    shared: SharedParameters = {}
    replaced = set(layers.values())
    parts = (part for part in module.modules() if part not in replaced)
    kept = {id(p) for part in parts for p in part.parameters(recurse=False)}
    for parameter in tensors.parameters:
        name, values = parameter.name, parameter.read()
        if name in state and name not in tracker:
            _copy(state[name], values)
        complete = tracker.add(name, values)
        del values  # so that its memory can go, as that of factors below
        for weight in filter(state.__contains__, complete):
            entry, factors = weights[weight], tracker.release(weight)
            if weight in layers:
                made = factored(layers[weight], entry.weight(factors), entry.factors, shared)
                replace_layer(module, weight, made)
            # Another layer, which is not replaced, may be tied to the weight.
            if weight not in layers or id(state[weight]) in kept:
                _copy(state[weight], entry.dense(factors))
            del factors


def _copy(target: torch.Tensor, values: Array) -> None:
    if is_extension(values.dtype):  # numpy has them from elsewhere; binary32 holds all their values
        values = values.astype(np.float32)
    target.copy_(torch.from_numpy(np.array(values)))
