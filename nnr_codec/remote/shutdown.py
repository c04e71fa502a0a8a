"""Lets one thread end what another one waits for at a server."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from .client import closed


class Shutdown:
    """Ends the waiting for one remote file, in whatever thread that is, for good.

    A connection that is there is shut at once, in both directions. One that is being made fails
    when it is there, which takes as long as making it may take.
    """

    def __init__(self) -> None:
        self._begun = threading.Event()
        self._lock = threading.Lock()  # so that no connection is missed
        self._sockets: WeakSet[Any] = WeakSet()

    def begin(self) -> None:
        """End all waiting; may be called by any thread, and again."""
        with self._lock:
            self._begun.set()
            for connection in self._sockets:
                _shut(connection)

    def check(self, name: str) -> None:
        """Raise ValueError, as of a file of that name which is closed, if it has begun."""
        if self._begun.is_set():
            raise closed(name)

    def wait(self, seconds: float) -> None:
        """Wait for so long, or until it begins."""
        self._begun.wait(seconds)

    def watch(self, connection: Any) -> None:
        """Shut this connection too when it begins. `connection`: a socket, or one with TLS."""
        with self._lock:
            self._sockets.add(connection)
            if self._begun.is_set():
                _shut(connection)


def _shut(connection: Any) -> None:
    """Let reading and writing end, while the socket stays open: its thread closes it."""
    # The plain method: that of TLS takes its state away from the thread that reads. For TLS within
    # TLS, urllib3 has an object around the socket.
    with suppress(OSError):  # it is closed, or the server was faster
        socket.socket.shutdown(getattr(connection, "socket", connection), socket.SHUT_RDWR)
