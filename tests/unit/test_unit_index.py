"""The table of contents in the model map: what its text holds, and what is refused."""

from __future__ import annotations

import base64
import zlib

import pytest

from nnr_codec.factorization import unit_index
from nnr_codec.factorization.map_checks import MapError
from nnr_codec.factorization.model_map import ModelMap, parse_model_map
from nnr_codec.factorization.tensor_order import NameRole
from nnr_codec.factorization.unit_index import (
    IndexedUnit,
    UnitIndex,
    parse_unit_index,
    short_digest,
)

BLOCK = ("G", "H", "local_scaling", "beta", "gamma", "mean", "var", "bias", "dense")
INDEX = UnitIndex(
    short_digest(b"head"),
    (
        IndexedUnit(70_000, short_digest(b"a"), (NameRole("a.weight", "weight"),)),
        IndexedUnit(5, short_digest(b"private")),
        IndexedUnit(9, short_digest(b"b"), tuple(NameRole(f"b.{role}", role) for role in BLOCK)),
        IndexedUnit(8, short_digest(b"c"), (NameRole("", "weight"),)),
    ),
)


def damaged(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_its_text_says_it_all() -> None:
    assert parse_unit_index(INDEX.to_text()) == INDEX
    empty = UnitIndex(short_digest(b""), ())
    assert parse_unit_index(empty.to_text()) == empty


def test_digests_are_the_first_half_of_a_sha_256() -> None:
    # The test vector "abc" of FIPS 180-2.
    assert short_digest(b"a", memoryview(b"bc")).hex() == "ba7816bf8f01cfea414140de5dae2223"


def test_a_unit_takes_at_most_40_bytes() -> None:
    names = [f"encoder.layer.{n}.attention.self.{kind}" for n in range(12) for kind in "qkv"]
    units = (
        IndexedUnit(1 << 30, short_digest(n.encode()), (NameRole(n, "weight"),)) for n in names
    )
    assert len(UnitIndex(INDEX.head_digest, tuple(units)).to_text()) < 40 * len(names)


def test_a_map_with_a_table_has_version_2() -> None:
    text = ModelMap(index=INDEX, metadata={"a": "b"}).to_text()
    assert text.startswith('{"nnr_model_map":2,')
    assert text.endswith(f'"index":"{INDEX.to_text()}"}}')
    assert parse_model_map(text, 32) == ModelMap(index=INDEX, metadata={"a": "b"})
    with pytest.raises(MapError, match="unknown key 'index'"):
        parse_model_map(text.replace(":2,", ":1,", 1), 32)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AAAA",
        "no base64!",
        INDEX.to_text()[:-4],
        INDEX.to_text() + "\n",
        damaged(base64.b64decode(INDEX.to_text()) + b"\0"),
        damaged(base64.b64decode(INDEX.to_text())[:36]),
    ],
)
def test_damaged_texts(text: str) -> None:
    with pytest.raises(MapError, match="index"):
        parse_unit_index(text)


def test_bits_that_base64_does_not_count() -> None:
    text = next(
        text
        for text in (UnitIndex(bytes(16), INDEX.units[:n]).to_text() for n in range(5))
        if text.endswith("=")
    )
    body = text.rstrip("=")
    other = body[:-1] + chr(ord(body[-1]) + 1) + text[len(body) :]
    assert base64.b64decode(other) == base64.b64decode(text)
    with pytest.raises(MapError, match="no base64"):
        parse_unit_index(other)


@pytest.mark.parametrize(
    "names",
    [
        b"",
        b"wa\0\0",
        b"wa\0\0\0\0",
        b"wa\0\0wb\0\0wc",
        b"xa\0\0wb\0\0",
        b"w\xff\0\0wb\0\0",
        b"wa\0" * 19 + b"\0\0",
        b"w" * (unit_index.MAX_NAME_BYTES + 1),
    ],
)
def test_damaged_names(names: bytes) -> None:
    head = bytes(16) + (2).to_bytes(4, "big") + 2 * (bytes(3) + b"\5" + bytes(16))
    good = parse_unit_index(damaged(head + zlib.compress(b"wa\0\0wb\0\0")))
    assert [unit.tensors[0].name for unit in good.units] == ["a", "b"]
    with pytest.raises(MapError, match="index"):
        parse_unit_index(damaged(head + zlib.compress(names)))


def test_names_that_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_index, "MAX_NAME_BYTES", 20)
    with pytest.raises(MapError, match="more than 20 bytes"):
        INDEX.to_text()
