"""What a foreign decoder has written, read with care: nothing unpickled, awaited, or endless."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .judging import Outcome, Tensors

DTYPES = {*(f"int{n}" for n in (8, 16, 32, 64)), *(f"float{n}" for n in (16, 32, 64))}
MAX_OUTPUT_BYTES = 2**28  # of one stream's tensors; those of the corpus take less than a hundredth
MAX_LIST_BYTES = 2**24  # of `tensors.json`, which takes many times its size when it is read
_MESSAGE_LENGTH = 200  # characters of what is wrong


def read_output(out: Path) -> Outcome:
    """Read what a decoder has written: an .npz file, or a folder with `tensors.json`."""
    try:
        tensors = _from_folder(out) if out.is_dir() else _from_npz(out)
    except FileNotFoundError as error:
        return Outcome("garbage", detail=f"no file {Path(error.filename or out).name}")
    except Exception as error:  # zip, its compressions and numpy have many of their own
        text = f"{type(error).__name__}: {error}"
        return Outcome("garbage", detail=f"its output cannot be read: {text[:_MESSAGE_LENGTH]}")
    return Outcome("tensors", tensors)


def _from_npz(path: Path) -> Tensors:
    """Member by member: names of tensors need not be names of files."""
    tensors: dict[str, Any] = {}
    with _opened(path, MAX_OUTPUT_BYTES) as source, zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        _check_size(path, sum(member.file_size for member in members), MAX_OUTPUT_BYTES)
        for member in members:
            with archive.open(member) as file:
                values = np.lib.format.read_array(file, allow_pickle=False)
            tensors[member.filename.removesuffix(".npy")] = values
    return tensors


def _from_folder(folder: Path) -> Tensors:
    """`tensors.json`: a list of objects with name, dtype, shape and file, as README.md says."""
    tensors: dict[str, Any] = {}
    left = MAX_OUTPUT_BYTES
    for entry in json.loads(_read(folder / "tensors.json", MAX_LIST_BYTES).decode()):
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"dtype {entry['dtype']!r}")
        data = _read(folder / entry["file"], left)
        left -= len(data)
        values = np.frombuffer(data, np.dtype(entry["dtype"]).newbyteorder("<"))
        tensors[entry["name"]] = values.reshape(entry["shape"])
    return tensors


def _read(path: Path, allowed: int) -> bytes:
    with _opened(path, allowed) as file:
        return file.read(allowed)


def _opened(path: Path, allowed: int) -> BinaryIO:
    """Open a regular file of at most `allowed` bytes; a pipe would be waited for, a device endless.

    Raises:
        OSError, ValueError: it is none.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        _check_size(path, status.st_size, allowed)
    except BaseException:
        file.close()
        raise
    return file


def _check_size(path: Path, size: int, allowed: int) -> None:
    if size > allowed:
        raise ValueError(f"{path.name}: {size} bytes, {allowed} are allowed")
