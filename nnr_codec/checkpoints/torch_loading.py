"""Unpickling of what `torch.save` wrote, without executing code from the file."""

from __future__ import annotations

import argparse
import pathlib
import re
import types
import zipfile
from typing import Any

import numpy as np

from nnr_codec.checkpoints.file_format import torch_folder
from nnr_codec.checkpoints.reading import file_error, open_regular
from nnr_codec.errors import InvalidModel

# How torch names what it refuses to import.
_FOREIGN = re.compile(r"GLOBAL (\S+) was not an allowed|unsupported GLOBAL (\S+) whose module")
_MAX_PICKLE_BYTES = 1 << 27  # of a compressed one; it holds all but the tensors' values
_SAVE = "torch.save(….state_dict(), 'weights.pt')"


def load(torch: Any, path: str) -> Any:
    """Return what was saved in the file `path`: tensors, plain containers, numpy's scalars.

    Raises:
        InvalidModel: it is damaged, a program (TorchScript), or holds objects that only code from
            it could rebuild; the message tells what to do.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_mappable(path))
    except InvalidModel:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # nothing is wrong with it
            raise file_error(path, f"cannot be read: {error.strerror}") from error
        named = _FOREIGN.search(str(error))
        if named is not None:
            what = named[1] or named[2]
            reason = f"refused, since rebuilding the {what} in it would execute code from it. Where"
            reason += f" that code is at home, save the weights alone: {_SAVE}"
            raise file_error(path, reason) from error
        # torch's text goes on with advice to load the file without this protection.
        text = str(error).rpartition("WeightsUnpickler error: ")[2].split("(Could this error")[0]
        reason = text.strip().split("\n")[0]
        reason = f"damaged file, or one that cannot be read without executing code: {reason}"
        raise file_error(path, f"{reason} ({type(error).__name__})") from error


def _is_mappable(path: str) -> bool:
    """Tell whether torch can map the file; refuse programs."""
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            return False
        with zipfile.ZipFile(file) as archive:
            folder = torch_folder(archive)
            if f"{folder}/constants.pkl" in archive.namelist():
                reason = "is a TorchScript archive, a program with its weights. Save these alone,"
                raise file_error(path, f"{reason} from torch.jit.load: {_SAVE}")
            for info in archive.filelist:
                deflated = info.compress_type != zipfile.ZIP_STORED
                if info.filename == f"{folder}/data.pkl" and deflated:
                    _check_pickle(path, info.file_size)
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in archive.filelist)
            return folder is not None and stored


def _check_pickle(path: str, size: int) -> None:
    """Refuse a compressed pickle, which torch does not write, if it is a large one."""
    if size > _MAX_PICKLE_BYTES:
        raise file_error(path, f"a compressed pickle of {size} bytes")


def _harmless() -> list[Any]:
    """Return what checkpoints hold beside tensors, and what rebuilds without side effects."""
    core = getattr(np, "_core", None) or np.core
    functions = [
        (core.multiarray.scalar, f"numpy.{package}.multiarray.scalar")
        for package in ("core", "_core")  # as numpy 1 and 2 call it
    ]
    arrays = [
        (core.multiarray._reconstruct, f"numpy.{package}.multiarray._reconstruct")
        for package in ("core", "_core")
    ]
    dtypes = [type(np.dtype(code)) for code in np.typecodes["All"] if code not in "Mm"]
    classes = [np.dtype, np.ndarray, *dtypes, argparse.Namespace, types.SimpleNamespace]
    return [*functions, *arrays, *classes, pathlib.PosixPath, pathlib.PurePosixPath]
