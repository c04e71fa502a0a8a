"""Layers of a module replaced in place by ones that run on factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from ..errors import InvalidModel
from ..factorization.forms import FactoredWeight
from ..user.module import check_not_lazy
from .chains import chain
from .factorized import FactorizedLayer, SharedParameters, factored


def factorize(module: nn.Module, weights: Mapping[str, FactoredWeight]) -> nn.Module:
    """Replace layers of a module by ones that run on factors.

    Args:
        module: changed in place; nothing is changed if anything is refused.
        weights: factors by the name of the weight in the module's state dict, such as
            "conv1.weight". An array that several of them have becomes one parameter. A layer that
            is tied to such a weight without being the same layer keeps the dense one.

    Returns:
        The module.

    Raises:
        InvalidModel: the module has no such weight, or one of another shape, or its layer cannot
            run on such factors; the message names it.

    >>> import numpy as np
    >>> from nnr_codec.factorization.forms import LowRank
    >>> weight = LowRank((16, 32), (np.ones((16, 2)), np.ones((2, 32))))
    >>> factorize(nn.Sequential(nn.Linear(32, 16)), {"0.weight": weight})[0].expand
    Linear(in_features=2, out_features=16, bias=True)
    """
    state = module.state_dict(keep_vars=True)
    layers: dict[str, nn.Module] = {}
    for name, weight in weights.items():
        if name not in state:
            raise InvalidModel(name, "is given as factors, and the module has no such tensor")
        check_shape(name, weight.shape, state[name])
        layers[name] = layer_of(module, name, weight.form, weight.shape, weight.ranks)
    check_distinct(module, weights)
    shared: SharedParameters = {}
    for name, weight in weights.items():
        identities = [str(id(factor)) for factor in weight.factors]
        replace_layer(module, name, factored(layers[name], weight, identities, shared))
    return module


def with_dense_layers(module: nn.Module) -> nn.Module:
    """Replace factorized layers of a module by dense ones, in place: what `factorize` did, undone.

    Their weights are the present products; each layer has one of its own, whatever factors it
    shared. The module may not be a factorized layer itself.

    Returns:
        The module.

    >>> import numpy as np
    >>> from nnr_codec.factorization.forms import LowRank
    >>> weight = LowRank((16, 32), (np.ones((16, 2)), np.ones((2, 32))))
    >>> module = factorize(nn.Sequential(nn.Linear(32, 16)), {"0.weight": weight})
    >>> with_dense_layers(module)[0]
    Linear(in_features=32, out_features=16, bias=True)
    """
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(module.modules()):
        if isinstance(parent, FactorizedLayer):
            continue
        for key, child in list(parent._modules.items()):
            if isinstance(child, FactorizedLayer):
                if child not in made:
                    made[child] = child.dense_layer()
                parent.add_module(key, made[child])
    return module


def check_shape(name: str, shape: tuple[int, ...], tensor: torch.Tensor) -> None:
    """Check that the module's `tensor` has the shape of what is to be put there.

    Raises:
        InvalidModel: it has another one, or none yet.
    """
    check_not_lazy(name, tensor)
    if tuple(tensor.shape) != shape:
        module_shape = tuple(tensor.shape)
        raise InvalidModel(name, f"has the shape {shape}, and {module_shape} in the module")


def layer_of(
    module: nn.Module, name: str, form: str, shape: tuple[int, ...], ranks: Sequence[int]
) -> nn.Module:
    """Return the layer of weight `name`, which the module has and which can run on factors.

    Raises:
        InvalidModel: it cannot.
    """
    path, _, attribute = name.rpartition(".")
    layer = module.get_submodule(path)
    kind = type(layer).__name__
    if attribute != "weight":
        reason = f"comes as factors, and is no layer's weight: it is {attribute!r} of a {kind}"
        raise InvalidModel(name, reason)
    if layer is module:
        raise InvalidModel(name, f"the {kind} cannot be replaced in place: it is the module itself")
    try:
        chain(form, layer, shape, ranks)
    except ValueError as error:
        raise InvalidModel(name, str(error)) from None
    return layer


def check_distinct(module: nn.Module, names: Iterable[str]) -> None:
    """Check that no layer of the module has two of these weights, each with other factors.

    Raises:
        InvalidModel: the module has one layer under both names.
    """
    first: dict[int, str] = {}
    for name in names:
        layer = module.get_submodule(name.rpartition(".")[0])
        other = first.setdefault(id(layer), name)
        if other != name:
            raise InvalidModel(
                name, f"is the weight of one layer with {other!r}: both have factors"
            )


def replace_layer(module: nn.Module, name: str, made: FactorizedLayer) -> None:
    """Put a factorized layer wherever the module has the layer of weight `name`.

    Args:
        module: changed in place.
        name: of the weight, which `layer_of` has checked.
        made: of that layer.
    """
    layer = module.get_submodule(name.rpartition(".")[0])
    for parent in list(module.modules()):
        for key, child in parent._modules.items():
            if child is layer:
                parent.add_module(key, made)
