"""Channels of a quantized network with the statistics that they have in the original one.

What quantization moves the mean of a channel by, and stretches its deviation by, is undone in the
vectors behind it: scale and offset of norms, biases of other layers (bias correction, Nagel et al.
2019, arXiv 1906.04721, and re-estimation of batch norm, here of both relative to the original
network: running statistics that came from augmented samples stay what they are). Needs the extra
`torch`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..user.module import (
    apply,
    apply_with,
    evaluating,
    hooked_layers,
    inputs_of,
    sample_count,
    untied_names,
    weight_layers,
)

if TYPE_CHECKING:
    import torch

_LEAST_SCALE, _MOST_SCALE = 0.5, 2.0
"""What deviations are corrected by: beyond that a channel is damaged, or nearly constant."""

Tensors = dict[str, "torch.Tensor"]


def match_channels(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    names: Collection[str],
    batches: Iterable[Any],
) -> Tensors:
    """Return vectors with which the channels have the means and deviations of the original network.

    Layer by layer in the order in which they run, each behind those that are corrected already: of
    norms means and deviations, of linear layers and convolutions means. Each batch gives its own
    correction, in one run of either network, and their mean is what is returned.

    Layers that a run calls more than once, and vectors that are tied, stay as they are. So do
    channels that are constant, or not finite.

    Args:
        module: the original network.
        tensors: of the quantized one, by their names in the state dict.
        names: of the vectors that may be changed.
        batches: inputs, or pairs (inputs, targets).

    Returns:
        The vectors that were corrected, of the types of `tensors`.
    """
    layers = _layers(module, set(names) & untied_names(module) & tensors.keys())
    if not layers:
        return {}
    with evaluating(module):
        for batch in batches:
            inputs = inputs_of(batch)
            seen: dict[Any, list[_Statistics]] = {layer: [] for layer in layers}
            with hooked_layers({layer: partial(_see, found) for layer, found in seen.items()}):
                apply(module, inputs)
            layers = {layer: channels for layer, channels in layers.items() if len(seen[layer]) < 2}
            correct = {
                layer: partial(channels.correct, seen[layer][0], sample_count(inputs))
                for layer, channels in layers.items()
                if seen[layer]
            }
            with hooked_layers(correct):
                apply_with(module, tensors, inputs)
    vectors: Tensors = {}
    for channels in layers.values():
        vectors.update(channels.corrected(tensors))
    return vectors


@dataclass(frozen=True)
class _Statistics:
    """Mean and standard deviation of each channel, (channels,), float32."""

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, layer: Any, output: torch.Tensor) -> _Statistics:
        import torch

        values = output.detach().float().movedim(_channel_dimension(layer), 0).flatten(1)
        deviation, mean = torch.std_mean(values, 1, correction=0)
        return cls(mean, deviation)


def _see(
    found: list[_Statistics], layer: Any, args: object, kwargs: object, output: torch.Tensor
) -> None:
    """Note the statistics of a layer's output, unless it is of one position alone; a hook."""
    if output.dim() > 1:
        found.append(_Statistics.of(layer, output))


class _Channels:
    """The channels of a layer, whose vectors are corrected: y becomes scale · y + offset."""

    def __init__(self, scale: str | None, offset: str) -> None:
        """`scale`, `offset`: names of its vectors."""
        self._scale_name = scale
        self._offset_name = offset
        self._scale: Any = 0.0
        self._offset: Any = 0.0
        self._samples = 0

    def correct(
        self,
        expected: _Statistics,
        samples: int,
        layer: Any,
        args: object,
        kwargs: object,
        output: torch.Tensor,
    ) -> torch.Tensor:
        """Return a layer's output with the expected statistics, and note the correction; a hook."""
        import torch

        seen = _Statistics.of(layer, output)
        scale = torch.ones_like(seen.mean)
        if self._scale_name is not None:
            ratio = (expected.deviation / seen.deviation).clamp(_LEAST_SCALE, _MOST_SCALE)
            is_constant = (seen.deviation == 0) | (expected.deviation == 0)
            scale = torch.where(is_constant | ratio.isnan(), scale, ratio)
        offset = (expected.mean - scale * seen.mean).nan_to_num(0.0, 0.0, 0.0)
        self._scale = self._scale + samples * scale
        self._offset = self._offset + samples * offset
        self._samples += samples
        shape = [1] * output.dim()
        shape[_channel_dimension(layer)] = -1
        return (output * scale.reshape(shape) + offset.reshape(shape)).to(output)

    def corrected(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Return the vectors, by name; none, if the layer did not run."""
        if not self._samples:
            return {}
        scale, offset = self._scale / self._samples, self._offset / self._samples
        before = tensors[self._offset_name]
        changed = {self._offset_name: (before * scale + offset).to(before)}
        if self._scale_name is not None:
            gamma = tensors[self._scale_name]
            changed[self._scale_name] = (gamma * scale).to(gamma)
        return changed


def _channel_dimension(layer: Any) -> int:
    """Return the dimension of a layer's output that has its channels, from the last one."""
    from torch import nn

    if isinstance(layer, nn.Linear | nn.LayerNorm):
        return -1
    is_convolution = layer.weight.dim() > 1  # also of a sample that is not in a batch
    return 1 - layer.weight.dim() if is_convolution else 1


def _layers(module: torch.nn.Module, names: Collection[str]) -> dict[Any, _Channels]:
    """Return the layers in `module` that have all their vectors among `names`."""
    from torch import nn

    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
    others = weight_layers(module)
    found: dict[Any, _Channels] = {}
    for name, layer in module.named_modules():
        start = f"{name}." if name else ""
        weight, bias = f"{start}weight", f"{start}bias"
        if isinstance(layer, norms):
            has_channels = getattr(layer, "weight", None) is not None and layer.weight.dim() == 1
            if has_channels and {weight, bias} <= set(names):
                found[layer] = _Channels(weight, bias)
        elif layer in others and bias in names:
            found[layer] = _Channels(None, bias)
    return found
