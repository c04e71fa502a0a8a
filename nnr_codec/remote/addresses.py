"""Addresses of files, such as https://host/model.nnr, told from paths."""

from __future__ import annotations

import re
from typing import Any
from urllib.request import url2pathname

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # of two characters: C: is a drive
_LOCAL = "file"


def is_address(source: Any) -> bool:
    """Return whether `source` is the address of a remote file: text that begins with a scheme,
    such as https:// or s3://. Paths are none, and file:// is a path: see `local_path`."""
    return isinstance(source, str) and scheme_of(source) not in ("", _LOCAL)


def scheme_of(address: str) -> str:
    """Return the scheme of an address in lower case; "" for a path."""
    match = _SCHEME.match(address)
    return match[1].lower() if match else ""


def local_path(source: Any) -> Any:
    """Return the path that an address file:///… stands for; any other source as it is."""
    if not isinstance(source, str) or scheme_of(source) != _LOCAL:
        return source
    _, slash, path = source.partition("://")[2].partition("/")
    return url2pathname(slash + path)


def printable_address(address: str) -> str:
    """Return an address for messages: without user, password and query, which may be secrets."""
    # By hand: a bad address has to be named too. A password may have any character, unescaped.
    scheme, separator, rest = address.partition("://")
    before, _, behind = rest.rpartition("@")
    if _is_secret(before):
        rest = behind
    start, query, _ = rest.partition("#")[0].partition("?")
    return f"{scheme}{separator}{start}{query and '?…'}"


def _is_secret(text: str) -> bool:
    """Return whether text before an @ is a user, perhaps with a password; else it is a host and
    part of a path."""
    host, slash, _ = text.partition("/")
    _, colon, port = host.partition(":")
    return bool(text) and (not slash or (bool(colon) and not port.isdigit()))
