"""Loading a bitstream or a model file into a module, its layers dense or as factors."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn

from ..decoding.source import Source
from ..decoding.stream_map import Layers, Selection
from ..options import DecodeLimits
from .filling import Agreement, ModuleFiller, State
from .replacing import check_distinct, layer_of
from .sources import ArrivingTensors, LoadSource, TensorSource, opened


def load_into(
    module: nn.Module,
    source: LoadSource,
    layers: Layers = "factorized",
    *,
    strict: bool = True,
    base: Sequence[Source] = (),
    parents: Sequence[Source] = (),
    limits: DecodeLimits | None = None,
    cache: str | os.PathLike[str] | None = None,
    quality: int | None = None,
) -> nn.Module:
    """Load tensors into a module, and with factors replace its layers in place.

    A layer whose weight comes as factors becomes a :class:`FactorizedLayer` with its stride,
    padding, dilation and groups, which the source does not know; hooks of the old layer are lost.
    Dtype, device and requires_grad are the old weight's. A factor that several layers share is one
    parameter of all of them. All other tensors are copied into the module's; to a layer that is
    tied to a weight in factors, their product is.

    Tensors are decoded and copied one at a time, so that memory is that of the module and its
    largest tensor. What the headers tell is checked before anything is changed; a payload that
    turns out to be damaged leaves the module partly loaded. Of a source that can be read once
    alone, such as a pipe, or that is at an address, tensors are loaded as they arrive, and each one
    is checked when it does: any error may leave the module partly loaded.

    Args:
        module: a module with the tensors and layers of the source, as the model had them before it
            was decomposed.
        source: a bitstream: bytes, a path, an address (https://…), or a binary file or pipe, from
            where it stands; or the path of a model file, dense or of factors (``nnr-decode --layers
            factorized``).
        layers: "factorized", or "dense": weights are formed from their factors, and no layer is
            replaced.
        strict: refuse tensors that only one of source and module has; else they are named in
            warnings (`NnrWarning`). The counters of batch norm
            (`num_batches_tracked`) may be missing, and of tied tensors all but one.
        base: of an update, the streams that it was made against, oldest first.
        parents: of a bitstream, the earlier streams of its series, oldest first.
        limits: what the source may ask for; by default ``DecodeLimits()``.
        cache: of an address, as of :func:`nnr_codec.decode`.
        quality: of a file of quality layers, how many of these to take.

    Returns:
        The module.

    Raises:
        InvalidModel: the module disagrees: a tensor is missing, has another shape or no memory for
            values, or a layer is of a kind that its factors cannot stand for; the message names
            it. Or the file is damaged.
        BitstreamError: the bitstream is damaged, or asks for what is not supported or allowed.
        InvalidOptions: an option has no such value.

    >>> import numpy as np
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
    with opened(source, layers, parents, limits, base, cache, quality) as tensors:
        if isinstance(tensors, TensorSource):
            _load(module, tensors, layers, strict)
        else:
            _load_arriving(module, tensors, layers, strict)
    return module


def _load(module: nn.Module, tensors: TensorSource, layers: Layers, strict: bool) -> None:
    """Load tensors whose headers are known: nothing is changed unless they agree."""
    state = module.state_dict(keep_vars=True)
    weights = tensors.factorizations
    filler = ModuleFiller(module, state, replaces=layers == "factorized")
    filler.expect(weights)
    agreement = Agreement(state, tensors.name)
    for parameter in tensors.parameters:
        if not filler.is_factor(parameter.name):
            agreement.note(parameter.name, parameter.shape)
    for name, entry in weights.items():
        agreement.note(name, entry.shape)
    agreement.note_end()
    if strict:
        agreement.refuse()
    agreement.warn()
    if layers == "factorized":
        _check_layers(module, state, tensors)
    for parameter in tensors.parameters:
        filler.add(parameter.name, parameter.read())


def _check_layers(module: nn.Module, state: State, tensors: TensorSource) -> None:
    """Check that the layers whose weights come as factors can be replaced."""
    shapes = {parameter.name: parameter.shape for parameter in tensors.parameters}
    weights = {name: entry for name, entry in tensors.factorizations.items() if name in state}
    for name, entry in weights.items():
        ranks = entry.ranks([shapes[factor] for factor in entry.factors])
        layer_of(module, name, entry.form, entry.shape, ranks)
    check_distinct(module, weights)


def _load_arriving(
    module: nn.Module, tensors: ArrivingTensors, layers: Layers, strict: bool
) -> None:
    """Load tensors that come with their headers; each is compared with the module as it comes."""
    state = module.state_dict(keep_vars=True)
    filler = ModuleFiller(module, state, replaces=layers == "factorized")
    agreement = Agreement(state, tensors.name)
    known: set[str] = set()
    for tensor in tensors.tensors:
        name, values = tensor.name, tensor.values
        weights = tensors.factorizations() if layers == "factorized" else {}
        new = {weight: entry for weight, entry in weights.items() if weight not in known}
        if new:
            check_distinct(module, filter(state.__contains__, new))
            filler.expect(new)
            known.update(new)
        for weight, entry in new.items():
            agreement.note(weight, entry.shape)
        if not filler.is_factor(name):
            agreement.note(name, values.shape)
        if strict:
            agreement.refuse()
        filler.add(name, values)
        del tensor, values  # before the next one is decoded
    agreement.note_end()
    if strict:
        agreement.refuse()
    agreement.warn()
