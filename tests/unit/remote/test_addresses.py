"""What is an address, and what messages say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnr_codec.remote.addresses import is_address, local_path, printable_address


@pytest.mark.parametrize(
    "source",
    ["http://host/m.nnr", "HTTPS://host/m.nnr", "s3://bucket/m.nnr", "memory://m", "hf://a/b"],
)
def test_addresses(source: str) -> None:
    assert is_address(source)


@pytest.mark.parametrize(
    "source",
    ["m.nnr", "/a//b", "C://m.nnr", "C:\\m.nnr", "a/http://b", "://x", "", "file:///a/b", "-"],
)
def test_paths(source: str) -> None:
    assert not is_address(source)


@pytest.mark.parametrize("source", [Path("http://host"), b"http://host", None])
def test_text_alone_is_an_address(source: object) -> None:
    assert not is_address(source)


def test_local_path() -> None:
    assert local_path("file:///models/my%20model.nnr") == "/models/my model.nnr"
    assert local_path("my%20model.nnr") == "my%20model.nnr"
    assert local_path(Path("a")) == Path("a")


def test_messages_hold_no_secrets() -> None:
    address = "https://me:secret@host:8080/m.nnr?token=secret#secret"
    assert printable_address(address) == "https://host:8080/m.nnr?…"
    assert printable_address("s3://bucket/m.nnr") == "s3://bucket/m.nnr"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:se/cret@host/m.nnr", "http://host/m.nnr"),
        ("http://me:se?cr#et@host/m.nnr", "http://host/m.nnr"),
        ("http://me:se@cret@host/m.nnr", "http://host/m.nnr"),
        ("http://token@host/m.nnr?a=b", "http://host/m.nnr?…"),
        ("http://host/a@b.nnr", "http://host/a@b.nnr"),
        ("http://host:80/a@b.nnr", "http://host:80/a@b.nnr"),
    ],
)
def test_odd_passwords(address: str, shown: str) -> None:
    assert printable_address(address) == shown
