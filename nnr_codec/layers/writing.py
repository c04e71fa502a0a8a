"""What a module of factorized layers is to an encoder: a dense model, and the factors of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from ..factorization.forms import FORMS, FactoredWeight
from ..model import Array
from .factorized import FactorizedLayer
from .layout import Layout

_Arrays = dict[tuple[int, Layout], Array]
"""Factors by the identity of their parameter and how a layer arranges it."""


def factored_weights(module: nn.Module) -> dict[str, FactoredWeight]:
    """Return the factors of a module's factorized layers, by the names of the dense weights.

    A parameter that layers share gives one array, so that it is coded once: with
    ``encode(dense_state(module), factorizations=factored_weights(module))``. Factors have the
    dtypes of the parameters (bfloat16, which numpy lacks, becomes float32). Of a layer that the
    module has under several names, it is the first.
    """
    seen: _Arrays = {}
    names: dict[FactorizedLayer, str] = {}
    for name, layer in _factorized(module):
        names.setdefault(layer, f"{name}weight")
    return {name: _weight(layer, seen) for layer, name in names.items()}


def dense_state(module: nn.Module) -> dict[str, Array]:
    """Return a module's state as it was before layers were factorized: dense weights, float32.

    They are the products that decoding the factors gives. Names and order are those of the state
    dict with the original layers; other tensors keep their dtype (bfloat16, which numpy lacks,
    becomes float32).
    """
    layers = dict(_factorized(module))
    result: dict[str, Array] = {}
    for name, tensor in module.state_dict().items():
        prefix = next((prefix for prefix in _prefixes(name) if prefix in layers), None)
        if prefix is None:
            result[name] = _array(tensor)
        elif f"{prefix}weight" not in result:
            layer = layers[prefix]
            result[f"{prefix}weight"] = _weight(layer, {}).to_dense()
            if layer.bias is not None:
                result[f"{prefix}bias"] = _array(layer.bias.detach())
    return result


def coded_names(module: nn.Module) -> dict[str, str]:
    """Return what tensors of factorized layers are called in `dense_state` and among the factors of
    `factored_weights`, ``<weight>.factor0`` and so on, by their names in the module."""
    names: dict[str, str] = {}
    for prefix, layer in _factorized(module):
        for index, child in enumerate(layer.layouts):
            names[f"{prefix}{child}.weight"] = f"{prefix}weight.factor{index}"
            names[f"{prefix}{child}.bias"] = f"{prefix}bias"
    return names


def _weight(layer: FactorizedLayer, seen: _Arrays) -> FactoredWeight:
    """Return the factors of a layer; arrays `seen` before are reused, new ones added."""
    factors = []
    for parameter, layout in layer.factor_parameters():
        key = (id(parameter), layout)
        if key not in seen:
            seen[key] = _array(layout.to_factor(parameter.detach()))
        factors.append(seen[key])
    return FORMS[layer.form](layer.shape, tuple(factors))


def _factorized(module: nn.Module) -> Iterator[tuple[str, FactorizedLayer]]:
    """Yield the factorized layers, with what the names of their tensors begin with."""
    for name, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, FactorizedLayer):
            yield f"{name}." if name else "", layer


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from ("".join(f"{part}." for part in parts[:count]) for count in range(len(parts)))


def _array(tensor: torch.Tensor) -> Array:
    plain = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return np.array(plain.cpu().numpy())
