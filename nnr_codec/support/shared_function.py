"""A function that travels to each worker of an executor about once, not with each of its calls.

What all calls need (options, the identities of tensors) is bound to the function. An executor
neither broadcasts nor lets the caller choose a worker, so the function's bytes go along with the
first calls, under a key, by which a worker keeps the function. One that gets the key alone and has
no such function says so; the same values are then sent again with the bytes.
"""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from traceback import format_exception
from typing import Any, TypeVar

from ..errors import NnrError

T = TypeVar("T")

_PROTOCOL = 5  # of pickle: the first that copies arrays once

_MAX_KEPT = 4
"""Functions that a worker keeps: one for each model that is coded at the same time, at the most."""

_kept: OrderedDict[bytes, Callable[[Any], Any]] = OrderedDict()
_kept_lock = threading.Lock()  # a worker may have several threads


def pickled(value: Any) -> bytes:
    """Return a value as bytes for a task; raises what the value's type raises."""
    return pickle.dumps(value, _PROTOCOL)


def call_shared(key: bytes, function: bytes | None, values: bytes, first: int) -> list[Any] | None:
    """Call a shared function, in a worker.

    Args:
        key: of the function.
        function: pickled; None: the worker should have it.
        values: a pickled list of arguments.
        first: index of the first argument to call with.

    Returns:
        The results from there on: all, or up to a call that raises an error; None: the worker lacks
        the function.

    Raises:
        Exception: what the first call raises. An error of a later call ends the results; it is
            raised when these values are sent again.
    """
    callee = _kept_function(key, function)
    if callee is None:
        return None
    results: list[Any] = []
    for value in pickle.loads(values)[first:]:
        try:
            results.append(callee(value))
        except Exception:
            if not results:
                raise
            break
    return results


def call_portably(tensor: str, function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function makes of a tensor, in another process perhaps.

    Raises:
        Exception: what the function raises.
        NnrError: that cannot be pickled, or not be made again, which would break a pool without a
            word of the cause; the message names the tensor, a note has the trace.
    """
    try:
        return function(*arguments)
    except Exception as error:
        failure, traceback = error, error.__traceback__
        try:
            pickle.loads(pickled(error.with_traceback(None)))  # as pools send it
        except Exception:
            failure = NnrError(f"tensor {tensor!r}: {type(error).__name__}: {error}")
            failure.add_note("".join(format_exception(error.with_traceback(traceback))))
        error.__traceback__ = traceback
    raise failure  # outside the handler: some libraries would pickle the first error along


def _kept_function(key: bytes, function: bytes | None) -> Callable[[Any], Any] | None:
    """Return the function of a key, from its bytes if it is new; None if these are lacking."""
    with _kept_lock:
        callee = _kept.pop(key, None)
        if callee is None and function is not None:
            callee = pickle.loads(function)
        if callee is not None:
            _kept[key] = callee  # the last one used
        if len(_kept) > _MAX_KEPT:
            _kept.popitem(last=False)
    return callee
