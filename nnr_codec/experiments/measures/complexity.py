"""What a network costs to run: parameters, and multiply-accumulates of inputs with weights.

MACs are those of linear and convolutional layers, measured while the network runs. As is usual,
normalization and embeddings count as none; products of two activations, as in attention, are
none either, since no tensor of the model takes part in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nnr_codec.errors import InvalidModel
from nnr_codec.experiments.batches import first_sample
from nnr_codec.experiments.subject import Subject
from nnr_codec.layers import load_into
from nnr_codec.user.module import apply, evaluating, hooked

Counter = Callable[[Any, torch.Tensor, torch.Tensor], int]


@dataclass(frozen=True)
class Complexity:
    """What a network costs.

    Attributes:
        parameters: elements of all parameters; those that are shared count once. Buffers, such as
            the statistics of batch norm, are none.
        macs: multiply-accumulates for the inputs that were given.
        unknown: names of modules whose own parameters may take part in MACs, but nobody knows how:
            `macs` lacks them.
        idle: names of modules with parameters that did not run.
    """

    parameters: int
    macs: int
    unknown: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()


def _convolution(layer: nn.Conv2d, inputs: torch.Tensor, outputs: torch.Tensor) -> int:
    """Each output is a sum over a window of the channels of its group; zeros around included."""
    return int(outputs.numel() * math.prod(layer.kernel_size) * layer.in_channels // layer.groups)


def _transposed(layer: nn.ConvTranspose2d, inputs: torch.Tensor, outputs: torch.Tensor) -> int:
    """Each input goes to a window of the channels of its group."""
    return int(inputs.numel() * math.prod(layer.kernel_size) * layer.out_channels // layer.groups)


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm,
          nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm)  # fmt: skip
COUNTERS: dict[type[nn.Module], Counter] = {
    nn.Linear: lambda layer, inputs, outputs: int(outputs.numel() * layer.in_features),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    **dict.fromkeys((*_NORMS, nn.Embedding, nn.PReLU), lambda *_: 0),
}
"""MACs of a layer, from itself, its first input and its output; of derived classes too."""


def subject_complexity(subject: Subject) -> Complexity:
    """Return what one sample costs, the first of those measured; InvalidModel if there is none."""
    for inputs, _ in subject.batches():
        return measure_complexity(subject.module(), first_sample(inputs))
    raise InvalidModel(subject.name, "has no samples")


def factorized_complexity(subject: Subject, stream: bytes) -> Complexity:
    """Return what one sample costs where layers run on the factors of a bitstream.

    Raises what `load_into` raises.
    """
    # Not strict: the counters of batch norm may be absent.
    factorized = replace(subject, module=lambda: load_into(subject.module(), stream, strict=False))
    return subject_complexity(factorized)


def measure_complexity(
    module: nn.Module, inputs: torch.Tensor | tuple[torch.Tensor, ...]
) -> Complexity:
    """Run `module` on `inputs` once and count. A layer that runs twice counts twice."""
    macs: list[tuple[nn.Module, int]] = []

    def hook(layer: nn.Module, arguments: Any, keywords: Any, outputs: Any) -> None:
        counter = _counter_of(layer)
        if counter is not None:
            first = next(iter((*arguments, *keywords.values())))
            macs.append((layer, counter(layer, first, outputs)))

    with evaluating(module), hooked(dict.fromkeys(module.modules(), hook)):
        apply(module, inputs)
    owners = {name: m for name, m in module.named_modules() if [*m.parameters(recurse=False)]}
    unknown = tuple(name for name, layer in owners.items() if _counter_of(layer) is None)
    ran = {layer for layer, _ in macs}
    idle = tuple(name for name, m in owners.items() if name not in unknown and m not in ran)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Complexity(parameters, sum(count for _, count in macs), unknown, idle)


def _counter_of(layer: nn.Module) -> Counter | None:
    return next((COUNTERS[kind] for kind in type(layer).__mro__ if kind in COUNTERS), None)
