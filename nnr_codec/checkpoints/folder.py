"""Folders as transformers and diffusers save models in: the weights, and what lies beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from nnr_codec.checkpoints.reading import file_error

STREAM = "model.nnr"
"""Name of the bitstream in a folder."""
WEIGHTS = "model.safetensors"
"""Name of the weights in a restored folder."""

_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model", "adapter_model", "open_clip_model")
_ENDINGS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
# The ends of the names of files that hold weights, in our formats and in others.
_OF_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".onnx", ".onnx_data", ".h5"),
    *(".msgpack", ".gguf", ".ggml", ".pkl", ".ot", ".tflite", ".nnr", ".index.json"),
)


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
    return [name for name in _all_files(folder) if not name.endswith(_OF_WEIGHTS)]


def weights_left_out(folder: str, used: Iterable[str]) -> list[str]:
    """Return the files of a folder and those below it that hold weights, by relative paths, but
    not those of the paths `used`."""
    known = set(map(os.path.realpath, used))
    return [
        name
        for name in _all_files(folder)
        if name.endswith(_OF_WEIGHTS) and os.path.realpath(os.path.join(folder, name)) not in known
    ]


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
