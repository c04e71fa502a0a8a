"""The four verbs with tensors of torch: the names and types of `safetensors.torch`.

>>> import torch
>>> import nnr_codec.torch
>>> module = torch.nn.Linear(64, 32).bfloat16()
>>> data = nnr_codec.torch.encode(module)
>>> {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in decode(data).items()}
{'weight': (torch.bfloat16, (32, 64)), 'bias': (torch.bfloat16, (32,))}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from . import decoder, encoder
from .checkpoints.torch_tensors import tensor_of
from .decoding.source import Source
from .options import EncodeOptions

__all__ = ["decode", "encode", "load_file", "save_file"]

Tensors = Mapping[str, torch.Tensor] | torch.nn.Module


def encode(tensors: Tensors, options: EncodeOptions | None = None, **arguments: Any) -> bytes:
    """Encode the tensors of a state dict, or of a module, into a bitstream.

    Args:
        tensors: by name, on any device; those that share memory are coded once. Or a module.
        options: by default ``EncodeOptions()``.
        arguments: further ones of :func:`nnr_codec.encode`.

    Raises: as :func:`nnr_codec.encode`.
    """
    return encoder.encode(tensors, None, options, **arguments).data or b""


def decode(
    source: Source, device: str | torch.device = "cpu", **arguments: Any
) -> dict[str, torch.Tensor]:
    """Decode a bitstream into tensors of their own types: bfloat16 and float8 as such.

    Args:
        source: the bitstream as bytes, a path, or a file open for reading.
        device: where the tensors are made.
        arguments: further ones of :func:`nnr_codec.decode`.

    Returns:
        The tensors by name, in the order of the model. What was one piece of memory is one tensor.

    Raises: as :func:`nnr_codec.decode`.
    """
    made: dict[int, torch.Tensor] = {}
    decoded = decoder.decode(source, **arguments)
    for name, values in decoded.items():
        if id(values) not in made:
            made[id(values)] = tensor_of(name, values).to(device)
    return {name: made[id(values)] for name, values in decoded.items()}


def save_file(
    tensors: Tensors, filename: str | os.PathLike[str], options: EncodeOptions | None = None
) -> None:
    """Encode tensors into the file `filename`, replacing it; raises what `encode` raises."""
    encoder.encode(tensors, filename, options, overwrite=True)


def load_file(
    filename: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """Decode the file `filename` into tensors on a device; raises what `decode` raises."""
    return decode(filename, device)
