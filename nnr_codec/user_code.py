"""Loading a function from a user's Python file, `"FILE.py:FUNCTION"`.

Such a file runs as any program of the user's: take it from people whom you trust.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import InvalidOptions

__all__ = ["call_function", "load_function"]


def call_function(place: str, option: str) -> Any:
    """Return what a function of a user's file returns, called without arguments.

    Raises:
        InvalidOptions: as `load_function` says; or the function raises an exception.
    """
    function = load_function(place, option)
    try:
        return function()
    except Exception as error:
        raise InvalidOptions(option, f"{place}: {type(error).__name__}: {error}") from error


def load_function(place: str, option: str, folder: Path | None = None) -> Callable[..., Any]:
    """Execute a file as a module of its own, and return a function of it.

    The file's own folder is first on the path of imports meanwhile, as it is for a script.

    Args:
        place: "FILE.py:FUNCTION".
        option: what to name in errors.
        folder: that FILE.py is relative to; the current one by default.

    Raises:
        InvalidOptions: there is no such file or function, or executing the file fails.
    """
    text, colon, function = place.rpartition(":")
    if not colon:
        raise InvalidOptions(option, f"{place!r} is not of the form FILE.py:FUNCTION")
    path = (folder or Path()) / text
    if not path.is_file():
        raise InvalidOptions(option, f"{place}: there is no file {str(path)!r}")
    try:
        module = _executed(path.resolve())
    except Exception as error:
        raise InvalidOptions(option, f"{place}: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InvalidOptions(option, f"{place}: {path.name} has no function {function!r}")
    made: Callable[..., Any] = found
    return made


def _executed(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"nnr_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
