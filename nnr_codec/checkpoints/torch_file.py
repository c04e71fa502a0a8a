"""`.pt`, `.pth`, `.bin`: the state dicts that `torch.save` writes; their code is never executed.

torch is imported only when such a file is read or written. Versions before 2.6 executed code even
under `weights_only=True` (CVE-2025-32434) and are refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

from nnr_codec.checkpoints.reading import file_error, package_error, parsing
from nnr_codec.checkpoints.state_dict import find_state_dict
from nnr_codec.checkpoints.torch_loading import load
from nnr_codec.checkpoints.torch_tensors import (
    array_of,
    check_tensor,
    numpy_dtype,
    parameters_of,
    tensor_of,
)
from nnr_codec.errors import InvalidModel
from nnr_codec.model import Array, Model, Parameter

_SAFE_VERSION = (2, 6)
_METADATA = "nnr_metadata"  # attribute of the written OrderedDict


def read(path: str, key: str | None = None) -> Model:
    """Open the state dict in the file `path`; its tensors come in its order, under its names.

    The file holds a state dict, that is a dict with tensors, or dicts around one
    (:func:`~nnr_codec.checkpoints.state_dict.find_state_dict` tells which is chosen; `key` names
    it). All else is left out, and named in the model's notes. Tensors that are the same piece of
    memory, in the same shape, strides and dtype, are tied to the first of them. The file is mapped
    into memory and read lazily where its kind allows it (not before torch 1.6, not when
    compressed).

    Raises:
        InvalidModel: torch is not installed; the file is damaged, or holds objects that only code
            from it could rebuild; no state dict is found, or several are; or a tensor is quantized,
            sparse, complex, nested, without values, or of a dtype that cannot be coded.
        InvalidOptions: there is no dict of tensors at `key`.
    """
    torch = _torch(path)
    with parsing(path):
        content = load(torch, path)
    found = find_state_dict(path, content, key, lambda value: isinstance(value, torch.Tensor))
    state = found.tensors
    tensors: dict[str, Any] = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            if not isinstance(name, str):
                raise file_error(path, f"the name is a {type(name).__name__}, not text", str(name))
            with parsing(path, name):
                tensors[name] = _checked(path, name, tensor)
    stated = getattr(state, _METADATA, None)
    entries = stated.items() if isinstance(stated, dict) else ()
    metadata = {k: v for k, v in entries if isinstance(k, str) and isinstance(v, str)}
    # The file stays mapped as long as `tensors` holds its tensors.
    parameters = _parameters(path, tensors)
    return Model(
        parameters, metadata=metadata, source=path, notes=found.notes(), on_close=tensors.clear
    )


def _torch(path: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise package_error(path, "torch", error) from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SAFE_VERSION:
        raise file_error(path, f"needs torch 2.6 or later, not {torch.__version__}")
    return torch


def _checked(path: str, name: str, tensor: Any) -> Any:
    """Return `tensor` once it is known that numpy can hold it, and that the file does."""
    if tensor.device.type != "cpu":
        raise file_error(path, "tensors that are without values are not supported", name)
    try:
        checked = check_tensor(name, tensor)
    except InvalidModel as error:
        raise file_error(path, error.reason, name) from None
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + reach + 1) * tensor.element_size()
    if tensor.numel() and end > tensor.untyped_storage().nbytes():
        raise file_error(path, "damaged file: the tensor is larger than its storage", name)
    return checked


def _parameters(path: str, tensors: dict[str, Any]) -> list[Parameter]:
    def load(name: str) -> Array:
        with parsing(path, name):
            if name not in tensors:
                raise file_error(path, "the model is closed", name)
            return array_of(tensors[name], numpy_dtype(name, tensors[name]))

    return [
        replace(parameter, load=partial(load, parameter.name))
        for parameter in parameters_of(tensors)
    ]


def write(
    path: str, file: BinaryIO, parameters: Sequence[Parameter], *, metadata: Mapping[str, str]
) -> None:
    """Write `parameters` to `file` as a state dict that `torch.load(weights_only=True)` reads.

    Tied parameters share their memory again. `metadata` become the attribute `nnr_metadata` of the
    `OrderedDict`, so that the keys are those of the tensors alone. torch writes all tensors at
    once: this is the one format for which the whole model is in memory.

    Raises: as :func:`nnr_codec.checkpoints.save_checkpoint`; InvalidModel without torch.
    """
    torch = _torch(path)
    state: OrderedDict[str, Any] = OrderedDict()
    for parameter in parameters:
        if parameter.tied_to is not None:
            state[parameter.name] = state[parameter.tied_to].detach()
        else:
            state[parameter.name] = tensor_of(parameter.name, parameter.read().copy())
    if metadata:
        setattr(state, _METADATA, dict(metadata))
    try:
        torch.save(state, file)
    except RuntimeError as error:  # of closing the archive, over what the system said of writing
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
