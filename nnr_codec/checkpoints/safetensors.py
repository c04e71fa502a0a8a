"""safetensors: the length of a JSON header, the header, and the tensors without gaps.

Format: https://huggingface.co/docs/safetensors. Files are validated by the `safetensors` package;
the tensors are read and written here, because the package neither tells their order in every
version nor writes one at a time.
"""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from safetensors import safe_open

from nnr_codec.checkpoints.reading import file_error, open_regular, parsing, unique_keys
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.model import Array, Model, Parameter, dtype_of

_DTYPES = {
    "BOOL": "bool",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_FORMAT_NAMES = {numpy_name: name for name, numpy_name in _DTYPES.items()}
_METADATA = "__metadata__"
_MAX_HEADER_BYTES = 100_000_000  # readers of the format refuse longer ones
_ALIGNMENT = 8  # bytes; what the header is padded to
_LENGTH = struct.Struct("<Q")  # of the header
_MOVED_BYTES = 1 << 22  # at a time


def read(path: str) -> Model:
    """Open the safetensors file `path`; its tensors come in the order of their data.

    Raises:
        InvalidModel: the file is damaged, or a tensor's element type cannot be coded.
    """
    file = open_regular(path)
    try:
        with parsing(path):
            _validate(path)
            header = _read_header(file)
            metadata = header.pop(_METADATA, None)
            start = file.tell()
            # Empty tensors take no bytes: the end orders them before what begins at the same
            # place, and the header's order, which a stable sort keeps, among themselves.
            entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
            lock = threading.Lock()  # of the file position
            parameters = [
                _parameter(path, file, lock, name, entry, start) for name, entry in entries
            ]
        return Model(parameters, metadata=metadata, source=path, on_close=file.close)
    except BaseException:
        file.close()
        raise


def _validate(path: str) -> None:
    """Open the file as other readers do, which compares its header with its size.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
    except FileNotFoundError:  # what it says whatever the reason, such as too many open files
        with open(path, "rb"):
            raise


def _read_header(file: BinaryIO) -> dict[str, Any]:
    (size,) = _LENGTH.unpack(file.read(_LENGTH.size))
    header: dict[str, Any] = json.loads(file.read(size), object_pairs_hook=unique_keys)
    return header


def _parameter(
    path: str, file: BinaryIO, lock: threading.Lock, name: str, entry: dict[str, Any], start: int
) -> Parameter:
    if entry["dtype"] not in _DTYPES:
        supported = ", ".join(_DTYPES)
        reason = f"tensors of type {entry['dtype']} are not supported, only {supported}"
        raise file_error(path, reason, name)
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    dtype = dtype_of(_DTYPES[entry["dtype"]])

    def load() -> Array:
        with parsing(path, name), lock:
            stored = np.empty(shape, dtype.newbyteorder("<"))
            file.seek(start + begin)
            got = file.readinto(stored.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
            if got != end - begin:
                raise file_error(path, "the file ends before the tensor does", name)
            return stored

    return Parameter(name, shape, dtype, load)


def write(
    path: str, file: BinaryIO, parameters: Sequence[Parameter], *, metadata: Mapping[str, str]
) -> None:
    """Write `parameters` as safetensors to `file`, one at a time and in order.

    Raises: as :func:`nnr_codec.checkpoints.save_checkpoint`.
    """
    header = _header(((p.name, p.shape, p.dtype) for p in parameters), metadata)
    file.write(_LENGTH.pack(len(header)) + header)
    for parameter in parameters:
        values = parameter.read()
        _write_values(file, values)
        del values  # before the next one is read


def write_arriving(
    path: str,
    file: BinaryIO,
    tensors: Iterable[tuple[str, Array]],
    *,
    metadata: Callable[[], Mapping[str, str]],
) -> None:
    """Write tensors, of which nothing is known before they come, to a new `file`, as `write` does.

    The header stands before them, so that all are moved once it is known; no other file is needed.

    Raises: as :func:`nnr_codec.checkpoints.save_checkpoint`.
    """
    described = []
    for name, values in tensors:
        described.append((name, values.shape, values.dtype))
        _write_values(file, values)
        del values  # before the next one comes
    header = _header(described, metadata())
    _insert(file, _LENGTH.pack(len(header)) + header)


def _write_values(file: BinaryIO, values: Array) -> None:
    stored = np.asarray(values, dtype=values.dtype.newbyteorder("<"), order="C")
    file.write(stored.reshape(-1).view(np.uint8).data)


def _insert(file: BinaryIO, head: bytes) -> None:
    """Put bytes before all that a file has, which is moved from its end on."""
    stop = file.tell()
    while stop:
        start = max(0, stop - _MOVED_BYTES)
        file.seek(start)
        piece = file.read(stop - start)
        file.seek(start + len(head))
        file.write(piece)
        stop = start
    file.seek(0)
    file.write(head)


def _header(
    described: Iterable[tuple[str, tuple[int, ...], np.dtype[Any]]], metadata: Mapping[str, str]
) -> bytes:
    """Return the JSON header, padded with spaces; data follow each other without gaps.

    `described`: name, shape and element type of each tensor, in order.
    """
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name, shape, dtype in described:
        if name == _METADATA:
            raise InvalidModel(_METADATA, "safetensors files reserve this name")
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _FORMAT_NAMES[dtype.name],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > _MAX_HEADER_BYTES:
        sizes = f"{len(text)} bytes, safetensors allows {_MAX_HEADER_BYTES}"
        raise InvalidOptions("output", f"names and metadata take {sizes}")
    return text
