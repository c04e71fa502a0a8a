"""A function that travels to each worker of an executor about once, not with each of its calls.

What all calls need (options, the identities of tensors) is bound to the function. An executor
neither broadcasts nor lets the caller choose a worker, so the function's bytes go along with some
calls, under a key. A worker keeps them under that key, and answers with its identity. One that gets
the key alone and lacks the function says so, and is sent the same values again with the bytes.
"""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple

_PROTOCOL = 5  # of pickle: the first that copies arrays once

_MAX_KEPT = 4
"""Functions that a worker keeps: one for each model that is coded at the same time, at the most."""

_SMALL_BYTES = 4096
"""Functions up to this size travel with each call, whose answer is about as large."""

_process_token = secrets.token_hex(8)
_kept: OrderedDict[bytes, Callable[[Any], Any]] = OrderedDict()
_kept_lock = threading.Lock()  # a worker may have several threads


class Answer(NamedTuple):
    """What a worker answers.

    Attributes:
        worker: host, process, and a number of the process's own, as processes may share a host's
            name or come after each other with one number.
        results: of the first values: of all of them; or up to one that gives an error; or of none,
            as the worker lacks the function.
    """

    worker: tuple[str, int, str]
    results: list[Any]


def pickled(value: Any) -> bytes:
    """Return the bytes of what a task carries; raises what the value's type raises."""
    return pickle.dumps(value, _PROTOCOL)


class SharedFunction:
    """A function of one argument, and what is known of the workers that have it."""

    def __init__(self, function: Callable[[Any], Any], workers: int) -> None:
        """`workers`: processes that probably run it."""
        self._bytes = pickled(function)
        self.key = blake2b(self._bytes, digest_size=16).digest()
        self._workers = workers
        self._holders: set[tuple[str, int, str]] = set()
        self._copies_under_way = 0
        self._copies_left = 2 * workers

    def copy_to_send(self, required: bool) -> bytes | None:
        """Return the function's bytes if the next call should have them.

        There are as many copies under way as workers that are not known to have one. As there may
        be fewer workers than was told, that ends with two copies for each.

        Args:
            required: a worker lacked them for this call.
        """
        if len(self._bytes) <= _SMALL_BYTES:
            return self._bytes
        lacking = self._workers - len(self._holders)
        is_useful = self._copies_under_way < lacking and self._copies_left > 0
        if not required and not is_useful:
            return None
        self._copies_left -= 1
        self._copies_under_way += 1
        return self._bytes

    def returned(self, copy: bytes | None, answer: Answer | None) -> None:
        """Note that a call is over, with `copy` among its arguments; None: without an answer."""
        if copy is not None:
            self._copies_under_way -= 1
        if answer is None:
            return
        if answer.results:
            self._holders.add(answer.worker)
        else:  # it is new, or has lost the function
            self._holders.discard(answer.worker)
            self._workers = max(self._workers, len(self._holders) + 1)
            self._copies_left += 2


def call_shared(key: bytes, function: bytes | None, values: bytes, first: int) -> Answer:
    """Call a shared function, in a worker.

    Args:
        key: of the function.
        function: pickled; None: the worker should have it.
        values: a pickled list of arguments.
        first: the place in the list of the first argument to call with.

    Raises:
        Exception: what the first call raises. An error of a later call ends the results; it is
            raised when the caller asks for these values again.
    """
    callee = _kept_function(key, function)
    results: list[Any] = []
    if callee is not None:
        for value in pickle.loads(values)[first:]:
            try:
                results.append(callee(value))
            except Exception:
                if not results:
                    raise
                break
    return Answer((socket.gethostname(), os.getpid(), _process_token), results)


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
