"""Fixtures of the tests with remote files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from remote_support import FileServer, random_bytes, serving


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A server of a file of a million bytes."""
    with serving(random_bytes(1_000_000)) as running:
        yield running
