"""Loading a function from a user's Python file, `"FILE.py:FUNCTION"`.

Such a file runs as any program of the user's: take it from people whom you trust.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from ..errors import InvalidOptions, NnrError

_PREFIX = "nnr_user_"
"""Of the names of users' modules."""
_counter = itertools.count(1)
_folders: set[Path] = set()
"""Of users' files that were executed."""
_executing = threading.RLock()
"""The path of imports and its caches are those of all threads."""


def _in_a_new_process() -> None:
    """Let a forked process not wait for threads that it does not have."""
    global _executing
    _executing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_new_process)


def load_function(location: str, option: str, folder: Path | None = None) -> Callable[..., Any]:
    """Execute a file as a module of its own, and return a function of it.

    The file's own folder is first on the path of imports meanwhile, as it is for a script. The
    module has a name that no other has; it is forgotten if executing the file fails. Threads
    execute files one after the other: while it is executed, a file must not wait for a thread that
    loads another.

    Args:
        location: "FILE.py:FUNCTION".
        option: what to name in errors.
        folder: that FILE.py is relative to; the current one by default.

    Raises:
        InvalidOptions: there is no such file or function, or executing the file fails.
    """
    text, colon, function = location.rpartition(":")
    if not colon:
        raise InvalidOptions(option, f"{location!r} is not of the form FILE.py:FUNCTION")
    path = (folder or Path()) / text
    if not path.is_file():
        raise InvalidOptions(option, f"{location}: there is no file {str(path)!r}")
    with naming_failures(location, option):
        module = _execute(path.resolve())
    loaded: Callable[..., Any] | None = getattr(module, function, None)
    if not callable(loaded):
        raise InvalidOptions(option, f"{location}: {path.name} has no function {function!r}")
    return loaded


def call_function(location: str, option: str) -> Any:
    """Return what a function of a user's file returns; InvalidOptions if that fails."""
    function = load_function(location, option)
    with naming_failures(location, option):
        return function()


@contextmanager
def naming_failures(location: str, option: str) -> Iterator[None]:
    """Turn what a user's code raises to InvalidOptions with its file, and the line if it is of such
    a file; our own errors stay."""
    try:
        yield
    except NnrError:
        raise
    except BaseException as error:  # of code that ends the program as well
        if is_interruption(error):
            raise
        raise InvalidOptions(option, f"{location}: {what_failed(error)}") from error


def what_failed(error: BaseException) -> str:
    """Return the type of an error that a user's code raised, what it says, and the last line of a
    user's file that it went through, if any."""
    return _described(error, _text(error))


def in_a_line(error: BaseException) -> str:
    """Return `what_failed` with the first line of what the error says: torch's go on for many."""
    first, *_ = _text(error).splitlines() or [""]
    return _described(error, first)


def _text(error: BaseException) -> str:
    """Return what an error says; nothing, where asking it fails as well."""
    try:
        return str(error)
    except Exception:
        return ""


def _described(error: BaseException, text: str) -> str:
    """Return the type of an error, a text, and the last line of a user's file on its way."""
    lines = [
        f" (line {number} of {Path(frame.f_code.co_filename).name})"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if _is_users(frame)
    ]
    return ": ".join(filter(None, (type(error).__name__, text))) + "".join(lines[-1:])


def _is_users(frame: FrameType) -> bool:
    """Whether a line is one of a user's file, and not of code made by it, as dataclasses are."""
    module = frame.f_globals
    is_of_file = frame.f_code.co_filename == module.get("__file__")
    return is_of_file and str(module.get("__name__")).startswith(_PREFIX)


def is_interruption(error: BaseException) -> bool:
    """Whether the user wants to end the program. Other exceptions that are no ``Exception``, such
    as that of ``sys.exit()``, are failures of the code that was called."""
    return isinstance(error, KeyboardInterrupt | GeneratorExit)


def _execute(path: Path) -> ModuleType:
    name = f"{_PREFIX}{next(_counter)}_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with _executing:
        _forget_namesakes(path.parent)
        sys.modules[name] = module  # where dataclasses look their module up
        sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        finally:
            with suppress(ValueError):  # the file itself removed it
                sys.path.remove(str(path.parent))
    return module


def _forget_namesakes(folder: Path) -> None:
    """Let imports of what lies in a folder not give what lay beside other users' files."""
    importlib.invalidate_caches()
    for name, module in list(sys.modules.items()):
        file, top = getattr(module, "__file__", None), name.partition(".")[0]
        lies_here = (folder / f"{top}.py").is_file() or (folder / top).is_dir()
        if file is not None and lies_here and _beside(Path(file), name) in _folders - {folder}:
            del sys.modules[name]
    _folders.add(folder)


def _beside(file: Path, name: str) -> Path:
    """Return the folder that a module was imported from, by its file."""
    levels = name.count(".") + (file.name == "__init__.py")
    return file.parents[levels] if levels < len(file.parents) else file
