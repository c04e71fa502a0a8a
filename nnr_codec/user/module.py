"""Calling a user's torch module on batches of the user's. Needs the extra `torch`.

A batch is a pair (inputs, targets), or inputs alone. Inputs are a tensor, a tuple of what the
module takes, or a dict of that by keyword; samples are along the first dimension.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidModel
from ..model import Parameter
from ..support.process_setting import ProcessSetting

if TYPE_CHECKING:
    import torch


def inputs_of(batch: Any) -> Any:
    """Return the inputs of `batch`, which are all of it unless it is a pair with targets."""
    return batch[0] if isinstance(batch, tuple | list) else batch


def apply(module: torch.nn.Module, inputs: Any) -> Any:
    """Call `module` with `inputs`: a tensor, a tuple of arguments, or a dict of them by keyword.

    It gets copies of tensors, also of those in dicts, tuples and lists, as it may work on them in
    place.
    """
    inputs = copied(inputs)
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def apply_with(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], inputs: Any) -> Any:
    """Call `module` as :func:`apply` does, with other tensors, by their names in its state dict, in
    place of its own, which stay as they are; gradients reach these tensors."""
    from torch.func import functional_call

    kept, inputs = dict(tensors), copied(inputs)
    if isinstance(inputs, Mapping):
        return functional_call(module, kept, (), dict(inputs))
    return functional_call(module, kept, inputs if isinstance(inputs, tuple) else (inputs,))


def copied(inputs: Any) -> Any:
    """Return inputs with copies of the tensors in them."""
    import torch

    return inputs.clone() if isinstance(inputs, torch.Tensor) else with_parts(copied, inputs)


def with_parts(change: Callable[[Any], Any], inputs: Any) -> Any:
    """Return inputs with each part changed; containers of other types than Python's own may not be
    made anew from their parts, and stay as they are, as does what is no container."""
    if type(inputs) is dict:
        return {name: change(part) for name, part in inputs.items()}
    if type(inputs) in (tuple, list):
        return type(inputs)(change(part) for part in inputs)
    return inputs


def parts_of(inputs: Any) -> list[Any]:
    """Return what a module is called with, by position or by keyword."""
    if isinstance(inputs, Mapping):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, tuple) else [inputs]


@contextmanager
def in_mode(module: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Turn to training or evaluation mode; at the end each part is in its own mode again.

    Meanwhile attention and what is around it take no fused path, which passes layers over.
    """
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:  # `train` may be the user's, and do more
            part.training = training
        with _no_fused_attention:
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _fused_attention() -> bool:
    from torch.backends import mha

    return bool(mha.get_fastpath_enabled())


def _set_fused_attention(value: bool) -> None:
    from torch.backends import mha

    mha.set_fastpath_enabled(value)


_no_fused_attention = ProcessSetting(_fused_attention, _set_fused_attention, value=False)

_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()


@contextmanager
def as_it_was(module: Any) -> Iterator[None]:
    """Have a module for this thread alone; at the end its buffers, and the gradients of its
    parameters, are those that it had, whatever running it did to them."""
    with _locks.setdefault(module, threading.RLock()):
        gradients = [(p, p.grad) for p in module.parameters() if p.is_leaf]
        buffers = [
            (part, name, buffer, buffer.clone())
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None and not buffer.is_meta and not buffer.is_inference()
        ]
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for part, name, buffer, values in buffers:
                part._buffers[name] = buffer
                _put_back(buffer, values)


def _put_back(buffer: torch.Tensor, values: torch.Tensor) -> None:
    """Let a buffer have values again, if it has others."""
    import torch

    with torch.no_grad():
        if buffer.shape != values.shape:
            buffer.data = values
        elif buffer.layout == torch.strided:
            is_same = (buffer == values) | ((buffer != buffer) & (values != values))
            if not is_same.all():
                buffer.copy_(values)


def structural_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy with the module's own tensors: what it keeps between calls is its own."""
    tensors = chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def independent_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy with tensors of its own; ValueError if the module copies itself in a way that
    shares some."""
    other = copy.deepcopy(module)
    own = {_memory(tensor) for tensor in _tensors(module).values() if tensor.numel()}
    if any(_memory(tensor) in own for tensor in _tensors(other).values()):
        raise ValueError("a copy of the module shares its tensors")
    return other


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Turn to evaluation mode, as :func:`in_mode`, and do without gradients; the module is
    :func:`as_it_was` afterwards."""
    import torch

    with as_it_was(module), torch.no_grad(), in_mode(module, training=False):
        yield


@contextmanager
def hooked(hooks: Mapping[Any, Callable[[Any, Any, Any, Any], object]]) -> Iterator[None]:
    """Call a layer's hook after each of its calls, with the layer, its arguments, those by keyword
    and the output; `hooks`: by their layers."""
    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def hooked_layers(hooks: Mapping[Any, Callable[[Any, Any, Any, Any], object]]) -> Iterator[None]:
    """Call hooks as :func:`hooked` does, but not of calls in which the input or the output is no
    tensor: layers of the user's that take or give more than torch's own."""
    import torch

    def of_tensors(hook: Any, layer: Any, args: Any, kwargs: Any, output: Any) -> Any:
        taken = args[0] if args else kwargs.get("input")
        if isinstance(taken, torch.Tensor) and isinstance(output, torch.Tensor):
            return hook(layer, args, kwargs, output)
        return None

    with hooked({layer: partial(of_tensors, hook) for layer, hook in hooks.items()}):
        yield


def sample_count(inputs: Any) -> int:
    """Return how many samples `inputs` have: along the first dimension of the first of them that
    has one; of others, which are not known, 1."""
    for part in parts_of(inputs):
        if isinstance(part, list) or len(getattr(part, "shape", ())):
            return len(part)
    return 1


def weight_layers(module: torch.nn.Module) -> dict[torch.nn.Module, str]:
    """Return the linear layers and (transposed) convolutions in `module`, in its order.

    Each with the name of its weight in the state dict; of tied weights it is the first. Layers
    whose weight is computed of others, by a reparametrization, or has no elements, are left out.
    Raises what `check_not_lazy` raises.
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
            weight = layer._parameters.get("weight", layer._buffers.get("weight"))
            if weight is not None and weight.numel() and _memory(weight) in names:
                layers[layer] = names[_memory(weight)]
    return layers


def load_state(
    module: torch.nn.Module, model: Mapping[str, Parameter], *, strict: bool = False
) -> None:
    """Copy the tensors of `model` to those of the same names in `module`.

    The counters of batch norm may be missing, and of tied tensors all but one. Tensors that the
    module does not have are ignored, unless `strict`.

    Raises:
        InvalidModel: another tensor is missing; one has another shape, a type that the module's
            cannot hold, or no shape yet in the module; or, if `strict`, the module lacks it.
    """
    import torch

    tensors = _tensors(module)
    loaded = {_memory(tensor) for name, tensor in tensors.items() if name in model}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name in model:
                tensor.copy_(_as_tensor(name, model[name], tensor))
            elif name.rpartition(".")[2] != "num_batches_tracked" and _memory(tensor) not in loaded:
                reason = "is missing: the module has it, the model does not"
                raise InvalidModel(name, reason + _wrapper_hint(name, model))
    for name in model:
        if strict and name not in tensors:
            raise InvalidModel(name, "the module has no such tensor")


_WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DataParallel"}  # or a distributed one


def _wrapper_hint(name: str, model: Mapping[str, Parameter]) -> str:
    """Return what to do where the module, or what the model was made of, is wrapped by torch."""
    own, parts = name, []
    while prefix := next((p for p in _WRAPPERS if own.startswith(p)), None):
        own = own.removeprefix(prefix)
        parts.append(prefix)
    if parts and own in model:
        inner = "".join(parts).rstrip(".")
        return f"; it has {own!r}: give what {_WRAPPERS[parts[0]]} wraps, the module's {inner!r}"
    for prefix, wrapper in _WRAPPERS.items():
        if prefix + name in model:
            reason = f"; it has {prefix + name!r}, as of a module that {wrapper} wraps"
            return f"{reason}: save that module's {prefix.rstrip('.')!r}"
    return ""


def tensors_like(
    module: torch.nn.Module, model: Mapping[str, Parameter]
) -> dict[str, torch.Tensor]:
    """Return the tensors of `model` as the module would have them: of its types, on its device.

    Those that it lacks are left out; tied ones are one tensor. Raises InvalidModel if one has
    another shape, a type that the module's cannot hold, or no shape yet in the module.
    """
    by_memory: dict[tuple[object, ...], torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(module).items():
        if name in model:
            values = _as_tensor(name, model[name], tensor).to(tensor)
            found[name] = by_memory.setdefault(_memory(tensor), values)
    return found


def parameter_uses(module: torch.nn.Module) -> Counter[int]:
    """Return how many layers have each parameter, by its identity; a layer counts once, under
    however many names the module has it."""
    return Counter(id(p) for layer in module.modules() for p in layer._parameters.values())


def untied_names(module: torch.nn.Module) -> set[str]:
    """Return the names in the module's state dict whose tensors have no other name there."""
    tensors = _tensors(module)
    names = Counter(_memory(tensor) for tensor in tensors.values() if tensor.numel())
    return {name for name, tensor in tensors.items() if names[_memory(tensor)] == 1}


@contextmanager
def with_state(module: torch.nn.Module, model: Mapping[str, Parameter]) -> Iterator[None]:
    """Let a module have the tensors of `model` in the block, and its own ones afterwards.

    Raises what :func:`load_state` raises.
    """
    import torch

    own = {name: tensor.clone() for name, tensor in _tensors(module).items()}
    try:
        load_state(module, model)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in _tensors(module).items():
                if name in own:
                    tensor.copy_(own[name])


def _as_tensor(name: str, parameter: Parameter, target: torch.Tensor) -> torch.Tensor:
    """Return values that can be copied to `target`."""
    import torch

    if parameter.shape != tuple(target.shape):
        reason = f"has the shape {parameter.shape}, in the module {tuple(target.shape)}"
        raise InvalidModel(name, reason)
    if target.is_floating_point():
        values = parameter.read()
        if values.dtype not in (np.float32, np.float64) or not values.dtype.isnative:
            # numpy's bfloat16 and float8 are unknown to torch; float64 holds them all.
            values = values.astype(np.float64)
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))
    if parameter.dtype.kind not in "biu":
        raise InvalidModel(name, f"is {parameter.dtype}, in the module {target.dtype}")
    return torch.from_numpy(parameter.read().astype(np.int64))


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    import torch

    tensors = {n: t for n, t in module.state_dict().items() if isinstance(t, torch.Tensor)}
    for name, tensor in tensors.items():
        check_not_lazy(name, tensor)
    return tensors


def check_not_lazy(name: str, tensor: torch.Tensor) -> None:
    """Raise InvalidModel if a module's tensor is that of a lazy layer that has not run yet."""
    import torch

    if torch.nn.parameter.is_lazy(tensor):
        raise InvalidModel(name, "has no shape in the module yet, which has to run once before")


def _memory(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return where a tensor's values are in memory, by which tied tensors are recognized."""
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()
