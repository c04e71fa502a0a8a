"""What the readers share: opening a model file, and errors that name the file and the tensor."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from nnr_codec.errors import InvalidModel, NnrError
from nnr_codec.support.listed import listed


def file_error(path: str, reason: str, tensor: str | None = None) -> InvalidModel:
    """Return the error that names the file `path`, or the tensor `tensor` in it."""
    if tensor is None:
        return InvalidModel(path, reason)
    return InvalidModel(tensor, f"in {path!r}: {reason}")


def left_out_notes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the sentence that names what a file holds beside the tensors; nothing without."""
    if not names:
        return ()
    return (f"beside the model's tensors the file holds {listed(names)}, which are left out",)


def package_error(path: str, extra: str, error: ImportError) -> InvalidModel:
    """Return the error that says which extra has the package that reading `path` needs."""
    if isinstance(error, ModuleNotFoundError) and error.name == extra:
        return file_error(path, f"needs {extra}: pip install nnr-codec[{extra}]")
    return file_error(path, f"needs {extra} (nnr-codec[{extra}]), which cannot be loaded: {error}")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; refuse duplicate keys, of which other readers use one or the other."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice in the JSON text")
    return result


@contextmanager
def parsing(path: str, tensor: str | None = None) -> Iterator[None]:
    """Turn any exception of a parser that reads the file `path` into InvalidModel.

    The parsers are those of other packages, and damaged data makes them raise all kinds: a damaged
    zip archive alone gives BadZipFile, zlib.error, EOFError, NotImplementedError ...
    """
    try:
        yield
    except NnrError:
        raise
    except OSError as error:
        raise file_error(path, error.strerror or str(error), tensor) from error
    except Exception as error:
        reason = f"damaged file: {str(error) or 'no reason given'} ({type(error).__name__})"
        raise file_error(path, reason, tensor) from error


def open_regular(path: str) -> BinaryIO:
    """Open the regular file `path` for reading.

    Raises:
        InvalidModel: there is no such file, it cannot be read, or it is a directory or a pipe.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise file_error(path, "is a directory, not a model file")
        if not stat.S_ISREG(mode):  # a checkpoint is read out of order, which a pipe cannot do
            raise file_error(path, "is not a regular file")
        return open(path, "rb")
    except OSError as error:
        raise file_error(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the path
        raise file_error(path, f"cannot be read: {error}") from error
