"""Calling a user's torch module on batches of the user's. Needs the extra `torch`.

A batch is a pair (inputs, targets), or inputs alone. Inputs are a tensor, a tuple of what the
module takes, or a dict of that by keyword; samples are along the first dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidModel
from ..model import Parameter

if TYPE_CHECKING:
    import torch


def inputs_of(batch: Any) -> Any:
    """Return the inputs of `batch`, which are all of it unless it is a pair with targets."""
    return batch[0] if isinstance(batch, tuple | list) else batch


def apply(module: torch.nn.Module, inputs: Any) -> Any:
    """Call `module` with `inputs`: a tensor, a tuple of arguments, or a dict of them by keyword."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


@contextmanager
def in_mode(module: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Turn to training or evaluation mode; at the end each part is in its own mode again."""
    modes = {part: part.training for part in module.modules()}
    try:
        module.train(training)
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Turn to evaluation mode, as :func:`in_mode`, and do without gradients."""
    import torch

    with torch.no_grad(), in_mode(module, training=False):
        yield


def sample_count(inputs: Any) -> int:
    """Return how many samples `inputs` have: along the first dimension of the first of them."""
    first = inputs
    if isinstance(inputs, Mapping):
        first = next(iter(inputs.values()))
    elif isinstance(inputs, tuple):
        first = inputs[0]
    return len(first)


def weight_layers(module: torch.nn.Module) -> dict[torch.nn.Module, str]:
    """Return the linear layers and (transposed) convolutions in `module`, in its order.

    Each with the name of its weight in the state dict; of tied weights it is the first.

    Raises:
        InvalidModel: a tensor is that of a lazy layer that has not run yet.
    """
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
             nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # fmt: skip
    names: dict[tuple[object, ...], str] = {}
    for name, tensor in _tensors(module).items():
        names.setdefault(_memory(tensor), name)
    layers: dict[torch.nn.Module, str] = {}
    for layer in module.modules():
        if isinstance(layer, kinds):
            weight_name = names.get(_memory(layer.weight))
            if weight_name is not None:
                layers[layer] = weight_name
    return layers


def load_state(module: torch.nn.Module, model: Mapping[str, Parameter]) -> None:
    """Copy the tensors of `model` to those of the same names in `module`.

    The counters of batch norm may be missing, and of tied tensors all but one. Tensors that the
    module does not have are ignored.

    Raises:
        InvalidModel: another tensor is missing, or has another shape, or none yet in the module.
    """
    import torch

    tensors = _tensors(module)
    loaded = {_memory(tensor) for name, tensor in tensors.items() if name in model}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name not in model:
                if name.rpartition(".")[2] == "num_batches_tracked" or _memory(tensor) in loaded:
                    continue
                raise InvalidModel(name, "the module has it, the model does not")
            if model[name].shape != tuple(tensor.shape):
                reason = f"has the shape {model[name].shape}, in the module {tuple(tensor.shape)}"
                raise InvalidModel(name, reason)
            tensor.copy_(torch.from_numpy(model[name].read().astype(np.float64)))


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of the state dict.

    Raises:
        InvalidModel: one is that of a lazy layer that has not run yet.
    """
    import torch

    tensors = {n: t for n, t in module.state_dict().items() if isinstance(t, torch.Tensor)}
    for name, tensor in tensors.items():
        check_not_lazy(name, tensor)
    return tensors


def check_not_lazy(name: str, tensor: torch.Tensor) -> None:
    """Check that a module's tensor is not that of a lazy layer that has not run yet.

    Raises:
        InvalidModel: it is.
    """
    import torch

    if torch.nn.parameter.is_lazy(tensor):
        raise InvalidModel(name, "has no shape in the module yet, which has to run once before")


def _memory(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return where a tensor's values are in memory, by which tied tensors are recognized."""
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()
