"""The format of a model file, told by its content and not by its name."""

from __future__ import annotations

import os
import zipfile
from typing import Literal

from nnr_codec.checkpoints.reading import file_error, open_regular, parsing
from nnr_codec.errors import InvalidModel

Format = Literal["safetensors", "index", "npz", "torch", "onnx"]

_HEAD_BYTES = 64
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # a first member; an archive without members
_PICKLE_PROTOCOL = 0x80  # the opcode that begins a pickle
# The first object of torch's files before version 1.6, 0x1950a86a20f9469cfc6c, as pickled.
_TORCH_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_IR_VERSION = 0x7F  # one byte of varint
# What can follow ModelProto.ir_version (field 1), as keys of protobuf: the fields 2 to 8 with their
# wire types, and 20 (two bytes, of which this is the first).
_ONNX_KEYS = b"\x12\x1a\x22\x28\x32\x3a\x42\xa2"


def format_of(path: str) -> Format:
    """Return the format of the regular file `path`.

    A zip archive with a member `data.pkl` in its single top folder is torch's, any other is npz. An
    ONNX model has no magic number: it is recognized by its first two fields, or else by the suffix
    `.onnx`, the one case in which the name counts.

    Raises:
        InvalidModel: the file is missing, unreadable, or of no known format.
    """
    with open_regular(path) as file, parsing(path):
        head = file.read(_HEAD_BYTES)
        if head.startswith(_ZIP_MAGICS):
            with zipfile.ZipFile(file) as archive:
                return "npz" if torch_folder(archive) is None else "torch"
    if head[:1] == bytes([_PICKLE_PROTOCOL]) and _TORCH_MAGIC in head:
        return "torch"
    if b"\0" not in head and head.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] == b"{":
        return "index"  # JSON; the binary length that begins a safetensors file has zeros
    if head[8:9] == b"{":  # after the eight bytes of its length, the JSON header of safetensors
        return "safetensors"
    is_onnx = head[:1] == b"\x08" and len(head) > 2 and head[2] in _ONNX_KEYS
    if (is_onnx and 0 < head[1] <= _MAX_IR_VERSION) or os.path.splitext(path)[1].lower() == ".onnx":
        return "onnx"
    known = "safetensors (or an index of it), .npz, torch's, nor ONNX"
    raise file_error(path, f"is neither {known}, or it is damaged")


def is_model_file(path: str) -> bool:
    """Whether a file is one by its content; all others count as bitstreams."""
    try:
        format_of(path)
    except InvalidModel:
        return False
    return True


def torch_folder(archive: zipfile.ZipFile) -> str | None:
    """Return the single top folder of `archive` if `data.pkl` is directly in it, else None."""
    names = archive.namelist()
    folder = names[0].split("/")[0] if names else ""
    inside = all(name.startswith(f"{folder}/") for name in names)
    return folder if inside and f"{folder}/data.pkl" in names else None
