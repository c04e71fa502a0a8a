"""The first request for a remote file: which version there is, and what a cache has of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..errors import NnrError, naming
from .addresses import scheme_of
from .client import Body, Client, Interrupted, Version
from .download import FIRST_BYTES, Download, Failures
from .local_copy import LocalCopy
from .shutdown import Shutdown

if TYPE_CHECKING:  # which imports what not every system has
    from .cache_entry import CacheEntry


def client_of(address: str, shutdown: Shutdown) -> Client:
    """Return a client for an address, whose waiting `shutdown` ends, where the client is ours.

    Raises:
        OSError: there is none for it.
    """
    if scheme_of(address) in ("http", "https"):
        from .http_client import HttpClient

        return HttpClient(address, shutdown)
    from .fsspec_client import FsspecClient

    return FsspecClient(address)


def cache_entry(folder: str | None, address: str) -> CacheEntry | None:
    """Return the entry of an address in a cache; None without one, or if another reader fills it:
    waiting for that could take as long as its download.

    Raises:
        OSError: the folder cannot be used.
    """
    if folder is None:
        return None
    try:
        from .cache_entry import CacheEntry
    except ImportError as error:  # of fcntl
        raise OSError(errno.ENOSYS, "a cache needs a system with file locks", folder) from error
    try:
        with naming(folder, NnrError):
            return CacheEntry(folder, address)
    except BlockingIOError:
        return None


def begin(
    name: str,
    client: Client,
    entry: CacheEntry | None,
    progress: Callable[[int], object] | None,
    shutdown: Shutdown,
) -> tuple[LocalCopy, Download]:
    """Ask for the file's version, and its first bytes that are missing.

    Returns:
        The local copy, which owns `entry`, and the download into it.

    Raises:
        OSError: the file cannot be read, or the disk is full.
        ValueError: `shutdown` has begun, in another thread.
    """
    failures = Failures(name, shutdown)
    while True:
        shutdown.check(name)
        try:
            body, version = _first_answer(client, entry)
            break
        except Interrupted as failure:
            failures.add(failure, "nothing has come")
    with ExitStack() as undo:
        if body is not None:
            undo.callback(body.close)
        copy = LocalCopy(name, version.size, _of_version(entry, version))
        undo.callback(copy.close)
        download = Download(name, client, body, version, copy, progress, shutdown)
        if body is not None:
            download.fetch(body.position, min(body.position + FIRST_BYTES, body.stop))
        undo.pop_all()
    return copy, download


def _first_answer(client: Client, entry: CacheEntry | None) -> tuple[Body | None, Version]:
    """Return the open answer to the first request, and the file's version; no answer if nothing
    is missing."""
    known = entry.version if entry is not None else None
    if entry is None or known is None:
        body = client.open(0, FIRST_BYTES)
        return body, body.version
    gap = entry.present.first_gap(0, known.size)
    if gap is None:
        changed = client.open_if_changed(known, FIRST_BYTES)
        return (None, known) if changed is None else (changed, changed.version)
    try:
        body = client.open(gap[0], min(gap[0] + FIRST_BYTES, gap[1]), known)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        body = client.open(0, FIRST_BYTES)  # it has become too short
    return body, body.version


def _of_version(entry: CacheEntry | None, version: Version) -> CacheEntry | None:
    """Return the entry with what it has of a version; None if it cannot be used for it."""
    if entry is None or (entry.version is not None and entry.version.matches(version)):
        return entry
    if entry.claim():
        if version.validator:
            entry.reset(version)
            return entry
        entry.remove()  # of this version no later run could tell that it is the same
    entry.close()
    return None
