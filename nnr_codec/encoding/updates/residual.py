"""What updates did not carry, kept in a file for the next one.

The file has, for each tensor that was quantized as a difference, what that was to make less what
decoders make of it, in binary32. The next update is to make its new tensor and this together. So
the errors of successive models add up to no more than one residual, whose size is about a step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import numpy as np

from ...checkpoints import open_checkpoint, safetensors
from ...checkpoints.atomic import atomic_output, makes_new_file
from ...decoding.updates.base_model import BaseModel
from ...errors import InvalidModel, InvalidOptions
from ...model import Array, Parameter
from .difference import FloatDifference

_STREAM = "nnr_residual_of"
"""The entry that has the SHA-256 of the update which left the residual."""

_SUFFIX = ".safetensors"


@contextmanager
def opened_residual(
    path: str | os.PathLike[str] | None, base: BaseModel
) -> Iterator[Mapping[str, Parameter]]:
    """Give the residuals of tensors by name, which are read while the block runs; none without a
    file.

    Raises:
        InvalidModel: the file is damaged, is no residual, or was left by another update than the
            last one of the base.
    """
    if path is None or not os.path.exists(path):
        yield {}
        return
    with open_checkpoint(path) as model:
        left_by, last = model.metadata.get(_STREAM), base.streams[-1].digest
        if left_by is None:
            raise InvalidModel(os.fspath(path), "is no residual: another file has that name")
        if left_by != last:
            reason = f"was left by the update with the SHA-256 {left_by}, and the base ends with "
            raise InvalidModel(os.fspath(path), f"{reason}{last}: move it away to begin anew")
        yield {name: parameter for name, parameter in model.items() if _is_residual(parameter)}


@contextmanager
def residual_output(
    path: str | os.PathLike[str] | None, out: str | os.PathLike[str] | None
) -> Iterator[BinaryIO | None]:
    """Give a file for what the update does not carry, which becomes `path` when the block ends; of
    an exception nothing is left, and the file that was there stays. None without a path.

    The update has to be in its place when the block ends: a residual belongs to one that exists.

    Args:
        path: of the residual, which is replaced.
        out: that of the update; None: memory.

    Raises:
        InvalidOptions: there can be no such file. Before the block is entered.
        OSError: writing failed.
    """
    if path is None:
        yield None
        return
    text = os.fspath(path)
    if not text.endswith(_SUFFIX):
        raise InvalidOptions("residual", f"{text!r} does not end with {_SUFFIX}")
    if not makes_new_file(text):
        raise InvalidOptions("residual", f"{text!r} is no file that can be replaced")
    if out is not None and os.path.realpath(out) == os.path.realpath(text):
        raise InvalidOptions("residual", f"{text!r} is the output, too")
    with atomic_output(text, overwrite=True) as file:
        yield file


def write_residual(file: BinaryIO, coded: Iterable[Parameter], updated: BaseModel) -> None:
    """Write what an update did not carry.

    Args:
        file: as `residual_output` gives it. It is on the disk when this returns.
        coded: what the update was made of.
        updated: what decoders have with it.

    Raises:
        BitstreamError: a stream of the base is damaged.
        OSError: the file cannot be written.
    """
    residuals = [
        Parameter(
            difference.name,
            difference.shape,
            np.dtype(np.float32),
            partial(_residual, difference, updated),
        )
        for difference in coded
        if isinstance(difference, FloatDifference)
    ]
    metadata = {_STREAM: updated.streams[-1].digest}
    safetensors.write("the residual", file, residuals, metadata=metadata)
    file.flush()
    os.fsync(file.fileno())


def _residual(difference: FloatDifference, updated: BaseModel) -> Array:
    target = difference.target()
    target -= updated.read(difference.name).reshape(-1)
    return target.astype(np.float32, copy=False).reshape(difference.shape)


def _is_residual(parameter: Parameter) -> bool:
    return parameter.dtype == np.float32
