"""What kind of layer a weight belongs to: from its shape, or from the module that runs it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InvalidModel
from ..model import Parameter, is_signed_float

if TYPE_CHECKING:
    import torch

_COLOURS = 3  # channels of most images

Kind = Literal["linear", "pointwise", "convolution", "transposed", "grouped", "depthwise", "other"]


@dataclass(frozen=True)
class LayerWeight:
    """The weight of one layer.

    Attributes:
        parameter: its name, shape and values.
        kind: "linear"; "pointwise": convolution of one tap; "convolution": of several taps;
            "grouped": convolution with groups; "depthwise": with as many groups as input channels;
            "transposed" convolution; "other": what no form executes.
        is_first: nothing with a weight runs before it, as far as the order of the module's layers
            tells, or, without a module, that of the model.
    """

    parameter: Parameter
    kind: Kind
    is_first: bool = False

    @property
    def name(self) -> str:
        """The tensor's name in the model."""
        return self.parameter.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The dense weight's dimensions."""
        return self.parameter.shape


def weights_of_model(
    model: Mapping[str, Parameter], module: torch.nn.Module | None = None
) -> list[LayerWeight]:
    """Return the weights that layers multiply their inputs by, in the order of the model.

    Args:
        model: tensors by name. Without a module, those of floats with two and more dimensions
            count as weights. A convolution with one input channel for each group looks like one
            with a single input channel: both count as depthwise ones, but for the first
            layer; other groups cannot be seen, nor whether a convolution is transposed.
        module: whose layers say what they are. What it has no layer for is of kind "other".

    Raises:
        InvalidModel: a weight has not the shape that the module's layer has.
    """
    candidates = [
        parameter
        for parameter in model.values()
        if len(parameter.shape) >= 2
        and parameter.size
        and is_signed_float(parameter.dtype)
        and parameter.tied_to is None
    ]
    if module is None:
        kinds = _kinds_by_shape(candidates)
        # A file's order does not tell the first layer, as files are often sorted by name: it is
        # rather a convolution of red, green and blue.
        of_images = [p for p in candidates if kinds[p.name] == "convolution"]
        order = [*(p.name for p in of_images if p.shape[1] == _COLOURS), *kinds]
    else:
        in_module = _kinds_in(module)
        kinds = {parameter.name: _kind_in_module(parameter, in_module) for parameter in candidates}
        order = list(in_module)
    first = next((name for name in order if kinds.get(name, "other") != "other"), None)
    return [LayerWeight(p, kinds[p.name], is_first=p.name == first) for p in candidates]


def _kinds_by_shape(candidates: Iterable[Parameter]) -> dict[str, Kind]:
    """Return the kinds of weights by their names, in order."""
    kinds: dict[str, Kind] = {}
    for parameter in candidates:
        is_first = all(kind == "other" for kind in kinds.values())
        kinds[parameter.name] = _kind_by_shape(parameter.shape, is_first=is_first)
    return kinds


def _kind_by_shape(shape: tuple[int, ...], *, is_first: bool) -> Kind:
    if len(shape) == 2:
        return "linear"
    if shape[1] == 1 and shape[0] > 1 and not is_first:
        return "depthwise"
    if math.prod(shape[2:]) == 1:
        return "pointwise"
    return "convolution" if len(shape) <= 4 else "other"


def _kind_in_module(
    parameter: Parameter, kinds: Mapping[str, tuple[Kind, tuple[int, ...]]]
) -> Kind:
    if parameter.name not in kinds:
        return "other"
    kind, shape = kinds[parameter.name]
    if shape != parameter.shape:
        reason = f"has the shape {parameter.shape}, in the module {shape}"
        raise InvalidModel(parameter.name, reason)
    return kind


def _kinds_in(module: torch.nn.Module) -> dict[str, tuple[Kind, tuple[int, ...]]]:
    """Return kind and shape of the weight of every layer, by its name, in the module's order."""
    from ..user.module import weight_layers

    kinds: dict[str, tuple[Kind, tuple[int, ...]]] = {}
    layers: dict[Any, str] = weight_layers(module)
    for layer, name in layers.items():
        kind, shape = _kind_of_layer(layer), tuple(layer.weight.shape)
        if kinds.setdefault(name, (kind, shape))[0] != kind:
            kinds[name] = "other", shape  # a weight that two kinds of layers share
    return kinds


def _kind_of_layer(layer: Any) -> Kind:
    shape = tuple(layer.weight.shape)
    if len(shape) == 2:
        return "linear"
    if len(shape) > 4:
        return "other"
    groups = layer.groups
    if layer.transposed:
        return "transposed" if groups == 1 else "other"
    if groups == layer.in_channels and groups > 1:
        return "depthwise"
    if groups > 1:
        return "grouped"
    return "pointwise" if math.prod(shape[2:]) == 1 else "convolution"
