"""`.npz`: a zip archive with one `.npy` array for each tensor; nothing is ever unpickled.

Text entries that travel beside the tensors are arrays as well: scalars of numpy's text type.
"""

from __future__ import annotations

import io
import math
import os
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from nnr_codec.checkpoints.reading import file_error, left_out_notes, open_regular, parsing
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.model import Array, Model, Parameter, is_extension, supported_dtype
from nnr_codec.options import DecodeLimits

_SUFFIX = ".npy"
_MAX_MEMBER_NAME_BYTES = 0xFFFF  # a 16-bit length (APPNOTE.TXT 4.4.10)
_MAX_DEFLATE_RATIO = 1032  # 258 bytes of output from 2 bits of input
_MAX_TEXT_BYTES = 4 * DecodeLimits().max_topology_bytes
"""Of all text entries, of four bytes for a character: as much as a stream's map could carry."""
_MAX_HEADER_BYTES = 1 << 16  # of an array in the archive: a length of 16 bits, in version 1
_NO_NUMBERS = "USOMm"  # kinds of numpy's types: texts, objects, times
_ENCRYPTED = 1  # flag bit 0 (APPNOTE.TXT 4.4.4)


def read(path: str) -> Model:
    """Open the `.npz` archive `path`; its tensors come in the order of the archive's directory.

    Arrays of texts, times and objects are left out, and named in the model's notes.

    Raises:
        InvalidModel: the archive is damaged, a name occurs twice, a member is no array of an
            element type that can be coded, its text entries are too long, or all members are
            arrays that would be left out.
    """
    file = open_regular(path)
    try:
        with parsing(path):
            archive = zipfile.ZipFile(file)
        tensors: list[Parameter] = []
        metadata: dict[str, str] = {}
        text_bytes = 0
        left_out: dict[str, InvalidModel] = {}
        for member in _members(path, archive, os.fstat(file.fileno()).st_size):
            shape, dtype = member.describe()
            if dtype.kind == "U" and shape == ():
                text_bytes += dtype.itemsize
                if text_bytes > _MAX_TEXT_BYTES:
                    reason = f"text entries of more than {_MAX_TEXT_BYTES // 4} characters"
                    raise file_error(path, reason, member.name)
                metadata[member.name] = str(member.load())
                continue
            try:
                dtype = _codable(path, member.name, dtype)
            except InvalidModel as error:
                if dtype.kind not in _NO_NUMBERS:
                    raise
                left_out[member.name] = error
            else:
                tensors.append(Parameter(member.name, shape, dtype, member.load))
        if left_out and not tensors:
            raise next(iter(left_out.values()))
        notes = left_out_notes(list(left_out))
        return Model(tensors, metadata=metadata, source=path, notes=notes, on_close=file.close)
    except BaseException:
        file.close()
        raise


def _members(path: str, archive: zipfile.ZipFile, archive_bytes: int) -> list[_Member]:
    """Return the arrays in `archive`, in order, once their directory entries make sense."""
    members: dict[str, _Member] = {}
    lock = threading.Lock()  # ZipFile counts its open members without one
    for info in archive.infolist():
        name = info.filename.removesuffix(_SUFFIX)
        if name == info.filename:
            raise file_error(path, f"member {name!r} is not a {_SUFFIX} array")
        if name in members:
            raise file_error(path, "two members have this name", name)
        if info.flag_bits & _ENCRYPTED:
            raise file_error(path, "is encrypted", name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise file_error(path, f"unknown compression method {info.compress_type}", name)
        if info.file_size > archive_bytes * _MAX_DEFLATE_RATIO:
            raise file_error(path, f"damaged file: {info.file_size} bytes cannot be in there", name)
        members[name] = _Member(path, name, archive, info, lock)
    return list(members.values())


def _codable(path: str, name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    try:
        return supported_dtype(name, dtype)
    except InvalidModel as error:
        raise file_error(path, error.reason, name) from None


@dataclass(frozen=True, slots=True)
class _Member:
    """One array in an open archive."""

    path: str
    name: str
    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    lock: threading.Lock

    def describe(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Read the `.npy` header and return shape and element type.

        Raises:
            InvalidModel: the header is damaged, or does not fit the size of the member.
        """
        with parsing(self.path, self.name), self.lock, self.archive.open(self.info) as stream:
            shape, dtype = _read_header(stream)
            stated = stream.tell() + math.prod(shape) * dtype.itemsize
        # Objects are pickles of any size; they are refused by their type.
        if min(shape, default=0) < 0 or (stated != self.info.file_size and not dtype.hasobject):
            raise file_error(self.path, "damaged file: shape and size do not match", self.name)
        return shape, dtype

    def load(self) -> Array:
        """Read the values, whose checksum is verified."""
        with parsing(self.path, self.name), self.lock, self.archive.open(self.info) as stream:
            values: Array = npy.read_array(stream, allow_pickle=False)
            stream.read(1)  # the checksum is compared at the end of the member
            return values


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(stream)
    # Version 3 differs in the names of structured types alone, which are refused anyway.
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"unsupported version {version} of the .npy format")
    if version == (2, 0):  # numpy looks at the length when it has read so much
        stream = _limited_header(stream)
    shape, _, dtype = readers[version](stream)
    return tuple(int(size) for size in shape), dtype


def _limited_header(stream: IO[bytes]) -> IO[bytes]:
    """Read the header of version 2 behind the magic, if it is not too long."""
    size = stream.read(4)
    length = int.from_bytes(size, "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"an array header of {length} bytes")
    return io.BytesIO(size + stream.read(length))


def write(
    path: str, file: BinaryIO, parameters: Sequence[Parameter], *, metadata: Mapping[str, str]
) -> None:
    """Write `parameters` as an `.npz` archive to `file`, one at a time, in order, uncompressed.

    Raises: as :func:`nnr_codec.checkpoints.save_checkpoint`.
    """
    for parameter in parameters:
        _check_type(parameter.name, parameter.dtype)
    _check_entries([parameter.name for parameter in parameters], metadata)
    arrays = ((parameter.name, parameter.read()) for parameter in parameters)
    write_arriving(path, file, arrays, metadata=lambda: metadata)


def write_arriving(
    path: str,
    file: BinaryIO,
    tensors: Iterable[tuple[str, Array]],
    *,
    metadata: Callable[[], Mapping[str, str]],
) -> None:
    """Write tensors, of which nothing is known before they come, as `write` does.

    Raises: as :func:`nnr_codec.checkpoints.save_checkpoint`.
    """
    names = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, values in tensors:
            _check_type(name, values.dtype)
            names.append(name)
            stored = np.asarray(values, dtype=values.dtype.newbyteorder("<"), order="C")
            _write_member(archive, name, stored)
            del values, stored  # before the next one comes
        entries = metadata()
        _check_entries(names, entries)
        for key, text in entries.items():
            _write_member(archive, key, np.array(text, dtype=f"<U{max(len(text), 1)}"))


def _check_type(name: str, dtype: np.dtype[Any]) -> None:
    if is_extension(dtype):  # np.load would give untyped bytes
        raise InvalidModel(name, f"tensors of dtype {dtype} cannot be held by an .npz archive")


def _check_entries(names: Sequence[str], metadata: Mapping[str, str]) -> None:
    """Refuse entries, and names of tensors, that the archive cannot hold."""
    for key, text in metadata.items():
        if key in names or text.endswith("\0"):  # numpy drops NULs at the end of a text
            raise InvalidOptions("metadata", f"an .npz archive cannot hold the entry {key!r}")
    _check_names([*names, *metadata])


def _check_names(names: Sequence[str]) -> None:
    """Refuse names that would not come back from a zip archive, or not from `np.load`."""
    known = set(names)
    for name in names:
        if "\0" in name:
            raise InvalidModel(name, "names in an .npz archive cannot hold a NUL")
        if len((name + _SUFFIX).encode()) > _MAX_MEMBER_NAME_BYTES:
            raise InvalidModel(name, "the name is too long for an .npz archive")
        if name + _SUFFIX in known:
            reason = f"np.load could not tell this name from {name!r} in an .npz archive"
            raise InvalidModel(name + _SUFFIX, reason)


def _write_member(archive: zipfile.ZipFile, name: str, values: Array) -> None:
    # ZipInfo's default date keeps the bytes the same from run to run; the size is not known to the
    # archive beforehand, hence zip64 always, as np.savez does.
    with archive.open(zipfile.ZipInfo(name + _SUFFIX), "w", force_zip64=True) as stream:
        npy.write_array(stream, values, allow_pickle=False)
