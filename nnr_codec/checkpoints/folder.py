"""Folders as transformers and diffusers save models in: the weights, and what lies beside them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from nnr_codec.checkpoints.atomic import atomic_output
from nnr_codec.checkpoints.reading import file_error
from nnr_codec.errors import InvalidOptions

STREAM = "model.nnr"
"""Name of the bitstream in a folder."""
WEIGHTS = "model.safetensors"
"""Name of the weights in a restored folder."""

_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model", "adapter_model", "open_clip_model")
_ENDINGS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
WEIGHT_ENDINGS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".onnx", ".onnx_data", ".h5"),
    *(".msgpack", ".gguf", ".ggml", ".pkl", ".ot", ".tflite", ".nnr", ".index.json"),
)
"""The ends of the names of files that hold weights, in our formats and in others."""


def weights_in(folder: str) -> str:
    """Return the path of the file, or of the index, that has the weights in a folder.

    It has the usual name (`model.safetensors`, `pytorch_model.bin.index.json`, …), safetensors
    before torch's, or is the only file of safetensors, or its index.

    Raises:
        InvalidModel: there is none, or more than one.
    """
    names = set(_files(folder))
    for ending in _ENDINGS:
        for stem in _STEMS:
            if stem + ending in names:
                return os.path.join(folder, stem + ending)
    indices = sorted(name for name in names if name.endswith(".safetensors.index.json"))
    found = indices or sorted(name for name in names if name.endswith(".safetensors"))
    if len(found) == 1:
        return os.path.join(folder, found[0])
    what = f"several may be: {', '.join(found[:8])}" if found else "none has a usual name"
    raise file_error(folder, f"is a directory; name the file in it that has the weights ({what})")


def files_beside(folder: str) -> list[str]:
    """Return the files of a folder and those below it that are no weights, by relative paths."""
    return [name for name in _all_files(folder) if not name.endswith(WEIGHT_ENDINGS)]


def files_to_copy(source: str, output: str) -> list[str]:
    """Return the files of the folder `source` that a folder `output`, which may be in it, gets too:
    those that are no weights, by relative paths.

    Raises:
        InvalidOptions: the folders are one.
    """
    if os.path.isdir(output) and os.path.samefile(source, output):
        raise InvalidOptions("output", f"{output!r} is the input")
    inside = os.path.relpath(os.path.realpath(output), os.path.realpath(source))
    return [name for name in files_beside(source) if not name.startswith(inside + os.sep)]


@contextmanager
def filled_folder(
    source: str, output: str, names: Iterable[str], *, overwrite: bool
) -> Iterator[None]:
    """Make a folder, unless it exists, around the block, and copy files `names` from `source`.

    A folder that was made goes again if the block, or copying, fails.
    """
    is_new = not os.path.isdir(output)
    try:
        os.makedirs(output, exist_ok=True)
        yield
        for name in names:
            target = os.path.join(output, name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with (
                open(os.path.join(source, name), "rb") as file,
                atomic_output(target, overwrite=overwrite) as copy,
            ):
                shutil.copyfileobj(file, copy)
    except BaseException:
        if is_new:
            shutil.rmtree(output, ignore_errors=True)
        raise


def weights_left_out(folder: str, used: Iterable[str]) -> list[str]:
    """Return the files of a folder and those below it that hold weights, by relative paths, but
    not those of the paths `used`."""
    known = set(map(os.path.realpath, used))
    names = (name for name in _all_files(folder) if name.endswith(WEIGHT_ENDINGS))
    return [name for name in names if os.path.realpath(os.path.join(folder, name)) not in known]


def _all_files(folder: str) -> Iterator[str]:
    """Yield the files of a folder and those below it that are not hidden, by relative paths."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(root, name), folder)


def _files(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.is_file())
    except OSError as error:
        raise file_error(folder, f"cannot be read: {error.strerror or error}") from error
