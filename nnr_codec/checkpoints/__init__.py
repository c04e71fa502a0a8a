"""Model files: opened by their content and read lazily, written atomically and in order.

One module for each format, with the same two functions:

* `read(path) -> Model`
* `write(path, parameters, *, metadata, overwrite) -> None`
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping

from nnr_codec.checkpoints import numpy_archive, safetensors
from nnr_codec.checkpoints._reading import blaming, fault, open_regular
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.model import Array, Model, Parameter, supported_dtype

__all__ = ["Tensors", "check_output", "open_checkpoint", "save_checkpoint"]

Tensors = Mapping[str, Array] | Mapping[str, Parameter] | Iterable[Parameter]

_WRITERS: dict[str, Callable[..., None]] = {
    ".safetensors": safetensors.write,
    ".npz": numpy_archive.write,
}
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # a first member; an archive without members


def open_checkpoint(path: str | os.PathLike[str]) -> Model:
    """Open the model file `path`, whose format is told by its content and not by its name.

    The file stays open until :meth:`Model.close`; its tensors are read one at a time, when asked
    for, and come in the file's own order (safetensors: that of the data; npz: that of the members).

    Raises:
        InvalidModel: the file is missing, unreadable, damaged or of an unknown format, or it holds
            a tensor that cannot be coded. Also from `read()` of the parameters.
    """
    text = os.fspath(path)
    with open_regular(text) as file, blaming(text):
        head = file.read(9)
    if head.startswith(_ZIP_MAGICS):
        return numpy_archive.read(text)
    if head[8:9] == b"{":  # after the eight bytes of its length, the JSON header of safetensors
        return safetensors.read(text)
    raise fault(text, "is neither a safetensors file nor an .npz archive, or it is damaged")


def save_checkpoint(
    path: str | os.PathLike[str],
    tensors: Tensors,
    *,
    overwrite: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `tensors` to `path`, in order, in the format that its suffix names.

    Args:
        path: ends with `.safetensors` or `.npz`. The file appears only when it is complete.
        tensors: arrays or parameters by name, or the parameters themselves. Parameters are read one
            at a time, in order, while the file is written: never is a whole model in memory.
        overwrite: replace an existing file.
        metadata: text entries kept beside the tensors (safetensors: `__metadata__`; npz: members
            that are scalar texts).

    Raises:
        InvalidOptions: the suffix is unknown, the output exists or cannot be written, or `metadata`
            is not text.
        InvalidModel: a tensor, or its name, is nothing that this format can hold.
        OSError: writing failed, for instance because the disk is full; no file is left.
    """
    text = os.fspath(path)
    write = _writer(text)
    entries = dict(metadata or {})
    if not all(isinstance(part, str) for entry in entries.items() for part in entry):
        raise InvalidOptions("metadata", "keys and values have to be text")
    _check_encodable(entries)
    write(text, _parameters(tensors), metadata=entries, overwrite=overwrite)


def check_output(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise now what `save_checkpoint` would raise of `path` after long work.

    Raises:
        InvalidOptions: the suffix is unknown, or the output exists and is not to be replaced.
    """
    text = os.fspath(path)
    _writer(text)
    if not overwrite and os.path.isfile(text):
        raise InvalidOptions("output", f"{text!r} exists already")


def _writer(path: str) -> Callable[..., None]:
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise InvalidOptions("output", f"{path!r} does not end with a suffix of a model: {known}")
    return _WRITERS[suffix]


def _parameters(tensors: Tensors) -> list[Parameter]:
    """Return `tensors` as parameters with distinct names of encodable text."""
    if not isinstance(tensors, Mapping):
        found = list(tensors)
    else:
        found = [
            dataclasses.replace(value, name=name)
            if isinstance(value, Parameter)
            else Parameter.from_array(name, value)
            for name, value in tensors.items()
        ]
    names: set[str] = set()
    for parameter in found:
        name = parameter.name
        if not isinstance(name, str):
            raise InvalidModel(str(name), f"the name is a {type(name).__name__}, not text")
        if name in names:
            raise InvalidModel(name, "two tensors have this name")
        if not _is_encodable(name):
            raise InvalidModel(name, "the name cannot be written in UTF-8")
        supported_dtype(name, parameter.dtype)
        names.add(name)
    return found


def _check_encodable(entries: Mapping[str, str]) -> None:
    for key, value in entries.items():
        if not _is_encodable(key) or not _is_encodable(value):
            raise InvalidOptions("metadata", f"{key!r} cannot be written in UTF-8")


def _is_encodable(text: str) -> bool:
    """Tell whether `text` is free of lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
