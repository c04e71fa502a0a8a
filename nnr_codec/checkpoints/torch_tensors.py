"""Tensors of torch as the parameters of a model, and arrays as tensors.

torch is loaded by whoever has tensors: nothing here imports it without one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from nnr_codec.errors import InvalidModel
from nnr_codec.model import Array, Model, Parameter, dtype_of, is_extension

_BITS = {1: "uint8", 2: "int16"}  # of what numpy has from ml_dtypes alone


def is_tensor(value: object) -> bool:
    """Tell whether a value is a tensor of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_module(value: object) -> bool:
    """Tell whether a value is a module of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def model_of_module(module: Any) -> Model:
    """Return the model of a module's state dict, whose memory it shares.

    What is no tensor there, such as the extra state of a layer, is named in the model's notes.

    Raises: as `model_of_tensors`.
    """
    state = module.state_dict()
    tensors = {name: value for name, value in state.items() if is_tensor(value)}
    others = ", ".join(repr(name) for name in state if name not in tensors)
    notes = [f"the module's state has more than tensors; left out: {others}"] if others else []
    return Model(parameters_of(tensors), notes=notes)


def model_of_tensors(tensors: Mapping[str, Any]) -> Model:
    """Return a model of tensors and arrays by name, whose memory it shares.

    Tensors that are the same piece of memory, in the same shape, strides and dtype, are tied to the
    first of them. Those on other devices are copied when they are read.

    Raises:
        InvalidModel: a value is no tensor and no array, or cannot be coded: it is quantized,
            sparse, complex, nested, without values, or of a dtype that cannot be coded.
    """
    return Model(parameters_of(tensors))


def parameters_of(tensors: Mapping[str, Any]) -> list[Parameter]:
    """Return the parameters of `model_of_tensors`; raises what that raises."""
    first: dict[tuple[object, ...], str] = {}
    parameters = []
    for name, tensor in tensors.items():
        if not is_tensor(tensor):
            parameters.append(Parameter.from_array(name, tensor))
            continue
        checked = check_tensor(name, tensor)
        tied_to = None
        if checked.numel():  # empty tensors have no memory to share
            memory = (checked.data_ptr(), checked.shape, checked.stride(), checked.dtype)
            earlier = first.setdefault((*memory, checked.device), name)
            tied_to = earlier if earlier != name else None
        dtype = numpy_dtype(name, checked)
        load = partial(array_of, checked, dtype)
        parameters.append(Parameter(name, tuple(checked.shape), dtype, load, tied_to))
    return parameters


def check_tensor(name: str, tensor: Any) -> Any:
    """Return a tensor without gradient once it is known that numpy can hold its values.

    Raises:
        InvalidModel: numpy cannot.
    """
    torch = sys.modules["torch"]
    refusals = {
        "quantized": tensor.is_quantized,
        "nested": tensor.is_nested,
        "sparse": tensor.layout != torch.strided,
        "complex": tensor.is_complex(),
        "without values": tensor.device.type == "meta",
    }
    for kind, refused in refusals.items():
        if refused:
            raise InvalidModel(name, f"tensors that are {kind} are not supported")
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise InvalidModel(name, f"tensors of type {type(tensor).__name__} are not supported")
    numpy_dtype(name, tensor)
    return tensor.detach()


def numpy_dtype(name: str, tensor: Any) -> np.dtype[Any]:
    """Return the element type of a tensor.

    Raises:
        InvalidModel: it cannot be coded.
    """
    text = str(tensor.dtype).removeprefix("torch.")
    try:
        return dtype_of(text)
    except KeyError:
        raise InvalidModel(name, f"tensors of dtype {text} are not supported") from None


def array_of(tensor: Any, dtype: np.dtype[Any]) -> Array:
    """Return the values; torch hands numpy only the types that numpy has itself."""
    plain = tensor.cpu().resolve_neg().contiguous()
    if not is_extension(dtype):
        return np.asarray(plain.numpy())
    bits = getattr(sys.modules["torch"], _BITS[dtype.itemsize])
    return np.asarray(plain.view(bits).numpy().view(dtype))


def tensor_of(name: str, values: Array) -> Any:
    """Return values as a tensor, which shares their memory where that can be written.

    Raises:
        InvalidModel: this version of torch has no such element type.
    """
    import torch

    kind = getattr(torch, values.dtype.name, None)
    if kind is None:
        raise InvalidModel(name, f"this version of torch has no dtype {values.dtype.name}")
    own = values if values.flags.writeable and values.flags.c_contiguous else values.copy()
    if not is_extension(values.dtype):
        return torch.from_numpy(own)
    return torch.from_numpy(own.view(_BITS[values.dtype.itemsize])).view(kind)
