"""Inputs and outputs of the commands: files, folders of models, standard input."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import BinaryIO

from ..checkpoints.folder import (
    STREAM,
    WEIGHTS,
    files_to_copy,
    filled_folder,
    weights_left_out,
)
from ..decoding.source import dropping_damaged
from ..errors import InvalidModel, InvalidOptions
from ..remote.addresses import is_address, local_path, printable_address
from ..remote.remote_file import RemoteFile
from ..support.listed import listed
from ._common import progress_bar
from ._streams import STDIN, standard_input

_NO_STREAMS = (
    *(".safetensors", ".npz", ".npy", ".pt", ".pth", ".bin", ".onnx", ".ckpt", ".h5", ".gguf"),
    *(".json", ".zip", ".txt", ".py"),
)
"""Ends of the names of files that are something else than bitstreams."""


@contextmanager
def model_file(path: str) -> Iterator[str]:
    """Give the path of a model; standard input, which `-` stands for, is copied to a file first.

    Raises:
        InvalidOptions: it is an address.
    """
    if is_address(path):
        reason = f"{shown(path)!r} is an address, which only decoding reads: download it first"
        raise InvalidOptions("input", reason)
    if path != "-":
        yield path
        return
    source = standard_input()
    with tempfile.TemporaryDirectory(prefix="nnr-") as folder:
        copy = os.path.join(folder, STDIN)
        with open(copy, "wb") as file:
            shutil.copyfileobj(source, file)
        yield copy


@contextmanager
def opened(given: argparse.Namespace, path: str) -> Iterator[BinaryIO | RemoteFile]:
    """Give a bitstream that is opened: a file, standard input, which `-` stands for, or a file at
    an address, with a progress bar of what comes of it.

    Raises:
        OSError: it cannot be opened.
    """
    if path == "-":
        yield standard_input()
    elif is_address(path):
        with _remote(path, given.cache, quiet=getattr(given, "quiet", False)) as remote:
            yield remote
    else:
        with open(local_path(path), "rb") as file:
            yield file


@contextmanager
def _remote(address: str, cache: str | None, *, quiet: bool) -> Iterator[RemoteFile]:
    shown: list[Callable[[float], object]] = []  # nothing, before the size is known

    def advance(amount: int) -> None:
        for show in shown:
            show(amount)

    with (
        dropping_damaged(address, cache),
        RemoteFile(address, cache=cache, progress=advance) as remote,
        progress_bar(quiet, remote.size, "B") as show,
    ):
        shown.append(show)
        advance(remote.byte_count)
        yield remote


def shown(path: str) -> str:
    """Return a path, or an address without what may be secret, for output and messages."""
    return printable_address(path) if is_address(path) else path


def stream_file(path: str) -> str:
    """Return the path of a bitstream; of a folder that of the one in it. Addresses stay.

    Raises:
        InvalidModel: there is none in the folder.
    """
    if not os.path.isdir(path):
        return path
    stream = os.path.join(path, STREAM)
    if not os.path.isfile(stream):
        raise InvalidModel(path, f"is a directory without a file {STREAM}")
    return stream


def is_folder(output: str) -> bool:
    """Whether an output is a folder: it ends with a slash, or is one."""
    return output.endswith(("/", os.sep)) or os.path.isdir(output)


def stream_output(output: str, source: str) -> str:
    """Return the file that a bitstream goes to, in a folder if the output is one.

    Raises:
        InvalidOptions: a folder is to be made of a file.
    """
    return _output(output, source, STREAM)


def check_ending(output: str) -> None:
    """Raise InvalidOptions if the name of an output is that of something else than a bitstream."""
    if output.lower().endswith(_NO_STREAMS):
        raise InvalidOptions("output", f"{output!r} does not end as a bitstream does: .nnr")


def model_output(output: str, source: str) -> str:
    """Return the file that a model goes to, in a folder if the output is one.

    Raises:
        InvalidOptions: a folder is to be made of a bitstream outside of one.
    """
    return _output(output, source, WEIGHTS)


def _output(output: str, source: str, name: str) -> str:
    if not is_folder(output):
        return output
    if not os.path.isdir(source):
        reason = f"{output!r} is a directory, and the input none: name a file"
        raise InvalidOptions("output", reason)
    return os.path.join(output, name)


def around(source: str, output: str | None, *, overwrite: bool) -> AbstractContextManager[None]:
    """Make, if the output is a folder, that folder around the block, and copy what lies in the
    folder `source` beside the weights.

    A folder that was made goes again if the block, or copying, fails.

    Raises:
        InvalidOptions: a file is there already, and `overwrite` is not given; or the folders are
            one.
    """
    if output is None or not is_folder(output):
        return nullcontext()
    names = files_to_copy(source, output)
    for path in (os.path.join(output, name) for name in names):
        if not overwrite and os.path.lexists(path):
            raise InvalidOptions("output", f"{path!r} exists already; -f overwrites it")
    return filled_folder(source, output, names, overwrite=overwrite)


def left_out_notes(source: str, output: str | None, used: Iterable[str]) -> tuple[str, ...]:
    """Return the sentence that names the files with weights in the folder `source` that are
    neither coded, being none of the files `used`, nor copied to the output; nothing without."""
    if output is None or not is_folder(output):
        return ()
    names = weights_left_out(source, used)
    if not names:
        return ()
    named = listed(names)
    return (f"the folder has other weights, which are neither coded nor copied: {named}",)


def refuse_inputs(output: str, inputs: Iterable[str]) -> None:
    """Raise InvalidOptions if the output is one of the files that are read."""
    if not os.path.exists(output):
        return
    for path in inputs:
        if os.path.exists(path) and os.path.samefile(path, output):
            raise InvalidOptions("output", f"{output!r} is an input: {path!r}")
