"""Model files: read lazily, whatever their format, and written atomically and in order.

One module for each format, with the same two functions:

* `read(path) -> Model`
* `write(path, file, parameters, *, metadata) -> None`, where `path` serves messages alone
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping

from nnr_codec.checkpoints import numpy_archive, onnx_file, safetensors, sharded, torch_file
from nnr_codec.checkpoints.atomic import atomic_output, makes_new_file
from nnr_codec.checkpoints.file_format import Format, format_of
from nnr_codec.checkpoints.folder import weights_in
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.model import Array, Model, Parameter, supported_dtype

__all__ = [
    "Tensors",
    "check_output",
    "open_checkpoint",
    "save_arriving",
    "save_checkpoint",
    "takes_arriving",
]

Tensors = Mapping[str, Array] | Mapping[str, Parameter] | Iterable[Parameter]

_ONNX = ".onnx"
_WRITERS: dict[str, Callable[..., None]] = {
    ".safetensors": safetensors.write,
    ".npz": numpy_archive.write,
    ".pt": torch_file.write,
    ".pth": torch_file.write,
    _ONNX: onnx_file.write,  # with one more parameter, graph
}
_ARRIVING_WRITERS: dict[str, Callable[..., None]] = {
    ".safetensors": safetensors.write_arriving,
    ".npz": numpy_archive.write_arriving,
}
_READERS: dict[Format, Callable[[str], Model]] = {
    "safetensors": safetensors.read,
    "npz": numpy_archive.read,
    "onnx": onnx_file.read,
}


def open_checkpoint(path: str | os.PathLike[str], *, key: str | None = None) -> Model:
    """Open the model file `path`, whose format is told by its content and not by its name.

    Formats: safetensors, npz, torch's state dicts (extra `torch`), the index of shards of
    safetensors or torch's, ONNX (extra `onnx`; a file named `.onnx` is taken for one if it is
    nothing else), and a folder as transformers saves a model in.

    The file stays open until :meth:`Model.close`; its tensors are read one at a time, when they
    are needed, and come in the order of the file (safetensors: of the data; index: of its
    weight_map; npz: of the members; torch: of the dict; ONNX: of the initializers). What of the
    file is not in the model is told by its notes.

    Args:
        path: of the file.
        key: of a torch file, the key of the state dict in it, keys of nested dicts with dots
            between them, "." for the outermost dict. None: it is found, if there is just one.

    Raises:
        InvalidModel: the file is missing, unreadable, damaged or of an unknown format, or it holds
            a tensor that cannot be coded. Also from `read()` of the parameters.
        InvalidOptions: there is no state dict at `key`, or the file is none of torch.
    """
    text = os.fspath(path)
    if os.path.isdir(text):
        text = weights_in(text)
    kind = format_of(text)
    if kind == "index":
        return sharded.read(text, functools.partial(_read_shard, key=key))
    return _read(text, kind, key)


def _read_shard(path: str, key: str | None) -> Model:
    kind = format_of(path)
    if kind not in ("safetensors", "torch"):
        raise InvalidModel(path, "is a shard, but no file of safetensors or torch")
    return _read(path, kind, key)


def _read(path: str, kind: Format, key: str | None) -> Model:
    if kind == "torch":
        return torch_file.read(path, key)
    if key is not None:
        raise InvalidOptions("key", f"is for files of torch, which {path!r} is not")
    return _READERS[kind](path)


def save_checkpoint(
    path: str | os.PathLike[str],
    tensors: Tensors,
    *,
    overwrite: bool = False,
    metadata: Mapping[str, str] | None = None,
    graph: str | os.PathLike[str] | None = None,
    complete: Callable[[], object] | None = None,
) -> None:
    """Write `tensors` to `path`, in order, in the format that its suffix names.

    Args:
        path: ends with `.safetensors`, `.npz`, `.pt`, `.pth` (extra `torch`) or `.onnx` (extra
            `onnx`). The file appears only when it is complete.
        tensors: arrays or parameters by name, or the parameters themselves. Parameters are read one
            at a time, in order, while the file is written: never is a whole model in memory, save
            for torch and ONNX. Tied ones share memory in torch's files and are copies in others.
        overwrite: replace an existing file.
        metadata: text entries kept beside the tensors (safetensors: `__metadata__`; npz: members
            that are scalar texts; torch: attribute `nnr_metadata` of the OrderedDict; ONNX:
            metadata_props).
        graph: the ONNX model of which `path` becomes a copy with other values in its initializers;
            needed for `.onnx`, and for nothing else. Its initializers are those of `tensors`, in
            any order.
        complete: called when all is written and before the file appears; what it raises goes on
            to the caller, and no file is left.

    Raises:
        InvalidOptions: the suffix is unknown, the output exists or cannot be written, `metadata`
            is not text, or `graph` is missing or of no use.
        InvalidModel: a tensor, or its name, is nothing that this format can hold; `graph` cannot be
            read, or its initializers have other names, shapes or dtypes; or the extra is missing.
        OSError: writing failed, for instance because the disk is full; no file is left.
    """
    text = os.fspath(path)
    write = _writer(text, graph)
    entries = dict(metadata or {})
    if not all(isinstance(part, str) for entry in entries.items() for part in entry):
        raise InvalidOptions("metadata", "keys and values have to be text")
    for key, value in entries.items():
        if not _is_encodable(key) or not _is_encodable(value):
            raise InvalidOptions("metadata", f"{key!r} cannot be written in UTF-8")
    parameters = _parameters(tensors)
    with atomic_output(text, overwrite=overwrite) as file:
        write(text, file, parameters, metadata=entries)
        if complete is not None:
            complete()


def save_arriving(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, Array]],
    *,
    overwrite: bool = False,
    metadata: Callable[[], Mapping[str, str]] = dict,
    complete: Callable[[], object] | None = None,
) -> None:
    """Write tensors of which nothing is known before they come, as `save_checkpoint` does.

    Args:
        path: a file to which :func:`takes_arriving` says yes.
        tensors: names, all different, and values. One at a time is in memory.
        overwrite, complete: as of :func:`save_checkpoint`.
        metadata: called when all tensors have come; returns text entries.

    Raises: as :func:`save_checkpoint`.
    """
    text = os.fspath(path)
    write = _ARRIVING_WRITERS[_suffix(text)]
    with atomic_output(text, overwrite=overwrite) as file:
        write(text, file, tensors, metadata=metadata)
        if complete is not None:
            complete()


def takes_arriving(path: str | os.PathLike[str]) -> bool:
    """Whether a file can be written with `save_arriving`: one of safetensors or npz, no pipe."""
    return _suffix(os.fspath(path)) in _ARRIVING_WRITERS and makes_new_file(path)


def check_output(
    path: str | os.PathLike[str], *, overwrite: bool, graph: str | os.PathLike[str] | None = None
) -> None:
    """Raise now what `save_checkpoint` would raise of `path` after long work.

    Raises:
        InvalidOptions: the suffix is unknown, the output exists and is not to be replaced, or
            `graph` is missing or of no use.
    """
    text = os.fspath(path)
    _writer(text, graph)
    if not overwrite and os.path.isfile(text):
        raise InvalidOptions("output", f"{text!r} exists already, and is not to be overwritten")


def _writer(path: str, graph: str | os.PathLike[str] | None) -> Callable[..., None]:
    suffix = _suffix(path)
    if suffix not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise InvalidOptions("output", f"{path!r} does not end with a suffix of a model: {known}")
    if suffix == _ONNX:
        if graph is None:
            raise InvalidOptions("graph", f"{path!r} needs the original ONNX model, for its graph")
        return functools.partial(onnx_file.write, graph=graph)
    if graph is not None:
        raise InvalidOptions("graph", f"is for {_ONNX} files, which {path!r} is not")
    return _WRITERS[suffix]


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _parameters(tensors: Tensors) -> list[Parameter]:
    """Return `tensors` as parameters with distinct names of encodable text.

    Ties have the names that are written; those to what is not written before them are dropped.
    """
    items = tensors.items() if isinstance(tensors, Mapping) else [(p.name, p) for p in tensors]
    renames: dict[str | None, str] = {}
    written: dict[str | None, Parameter] = {}
    for name, value in items:
        if isinstance(value, Parameter):
            renames.setdefault(value.name, name)
    for name, value in items:
        parameter = value if isinstance(value, Parameter) else Parameter.from_array(name, value)
        if not isinstance(name, str):
            raise InvalidModel(str(name), f"the name is a {type(name).__name__}, not text")
        if name in written:
            raise InvalidModel(name, "two tensors have this name")
        if not _is_encodable(name):
            raise InvalidModel(name, "the name cannot be written in UTF-8")
        supported_dtype(name, parameter.dtype)
        first = written.get(renames.get(parameter.tied_to, parameter.tied_to))
        if first and (first.shape, first.dtype) != (parameter.shape, parameter.dtype):
            first = None
        tied_to = first.name if first else None
        written[name] = dataclasses.replace(parameter, name=name, tied_to=tied_to)
    return list(written.values())


def _is_encodable(text: str) -> bool:
    """Tell whether `text` is free of lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
