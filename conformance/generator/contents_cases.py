"""Cases of what the model map says of its file: tables of contents, and quality layers.

They are for decoders that know the map, as updates are: the others pass over a table, and refuse
the second of several streams.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..suite.cases import CaseFiles, describe
from .building import DataUnit, floats, integers, parameters, ramp, start, topology
from .syntax import unit as unit_of_type
from .update_cases import SHAPE, Arrays, Draft, update_of, values_of

CONTENTS = "The table of contents (model_map.md)"
LAYERS = "Quality layers (model_map.md)"
Entry = tuple[int, bytes, str]
"""Of a unit: its bytes, its digest, and the letter and name of its tensor."""


def contents_cases() -> Iterator[Draft]:
    for name, files in (*tables(), *layers()):
        yield f"contents/{name}", files


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


def indexed(
    units: Sequence[bytes],
    names: Sequence[str],
    change: Callable[[list[Entry]], list[Entry]] = list,
    head: bytes | None = None,
) -> bytes:
    """A stream of these units with a table of them, or with one that was changed.

    `head`: its digest, if it is to be another one.
    """
    pairs = zip(units, names, strict=True)
    entries = change([(len(unit), digest(unit), f"w{name}\0\0") for unit, name in pairs])
    table = b"".join(size.to_bytes(4, "big") + code for size, code, _ in entries)
    texts = zlib.compress("".join(text for *_, text in entries).encode(), 9)
    rest = len(entries).to_bytes(4, "big") + table + texts

    def with_table(code: bytes) -> tuple[bytes, bytes]:
        text = base64.b64encode(code + rest).decode()
        model_map = json.dumps({"nnr_model_map": 2, "index": text}, separators=(",", ":"))
        return start() + parameters() + topology(topology_data=model_map), text.encode()

    data, text = with_table(bytes(16))
    before, _, behind = data.rpartition(text)
    return b"".join([with_table(digest(before + behind) if head is None else head)[0], *units])


def tables() -> Iterator[Draft]:
    values = ramp(12, 5), ramp(12, 7), ramp(6, 9)
    w, x, i = floats(values[0], SHAPE), floats(values[1], SHAPE, "x"), integers(values[2], (6,))
    units, names = [unit.bytes() for unit in (w, x, i)], ["w", "x", "i"]
    expected = {
        "w": values_of(values[0]),
        "x": values_of(values[1]),
        "i": np.array(values[2], np.int32),
    }
    yield _case("table", indexed(units, names), expected, "a table of contents", CONTENTS)

    def refused(name: str, data: bytes, text: str, error: str = "invalid") -> Draft:
        files = CaseFiles(data, text, CONTENTS, base=[], error=error)
        return name, files

    damaged = [*units[:2], units[2][:-1] + bytes([units[2][-1] ^ 1])]
    good = indexed(units, names)
    data = good[: -len(units[2])] + damaged[2]
    yield refused("damaged_unit", data, "a unit of which one bit is flipped")
    yield refused("wrong_head", indexed(units, names, head=bytes(16)), "a head of another digest")
    text = "a table of units in another order"
    yield refused("wrong_order", indexed(units, names, lambda e: [e[1], e[0], e[2]]), text)
    text = "a table of other tensors"
    yield refused("wrong_names", indexed(units, ["w", "y", "i"]), text)
    text = "a unit more than the table has"
    yield refused("unit_too_many", indexed(units, names, lambda entries: entries[:2]), text)
    text = "a unit of the table is missing"
    yield refused("unit_missing", good[: -len(units[2])], text, "truncated")


def layers() -> Iterator[Draft]:
    coarse, fine = ramp(12, 5), [0, 1, -1, 0, 1, 1, 0, -1, 0, 0, 1, 0]
    unit = floats(coarse, SHAPE)
    model = {"w": values_of(coarse)}
    sum_ = {"w": values_of(coarse) + values_of(fine)}
    whole = layered(unit, model, floats(fine, SHAPE))
    private = layered(unit, model, floats(fine, SHAPE), private=unit_of_type(40, b"own"))
    no_update = _layers(unit, lambda _: _stream({}, unit))
    first = len(whole) - len(update_of(b"", model, [floats(fine, SHAPE)]))
    yield _case("quality_layers", whole, sum_, "two quality layers", LAYERS)
    text = "two quality layers, the second one cut"
    yield _case("quality_layers_cut", whole[:-1], model, text, LAYERS)
    yield _case("quality_layers_first", whole[:first], model, "the first quality layer", LAYERS)
    for name, data, error, text in (
        ("first_layer_cut", whole[: first - 1], "truncated", "a first quality layer that is cut"),
        ("behind_layers", whole + b"\0", "invalid", "a byte behind the quality layers"),
        ("private_before_layers", private, "invalid", "a private unit before the map of layers"),
        ("layer_no_update", no_update, "wrong base", "a second quality layer that is no update"),
        ("not_announced", 2 * _stream({}, unit), "invalid", "a second stream"),
    ):
        yield name, CaseFiles(data, text, LAYERS, base=[], error=error)


def layered(unit: DataUnit, model: Arrays, refinement: DataUnit, private: bytes = b"") -> bytes:
    """A file of two quality layers."""
    return _layers(unit, lambda first: update_of(first, model, [refinement]), private)


def _layers(unit: DataUnit, second: Callable[[bytes], bytes], private: bytes = b"") -> bytes:
    size, rest = 0, len(second(b""))
    while size != len(first := _stream({"quality_layers": [size, rest]}, unit, private)):
        size = len(first)
    return first + second(first)


def _stream(entries: Mapping[str, Any], unit: DataUnit, private: bytes = b"") -> bytes:
    text = json.dumps({"nnr_model_map": 2, **entries}, separators=(",", ":")) if entries else ""
    head = [start(), private, parameters(), topology(topology_data=text)]
    return b"".join([*head, unit.bytes()])


def _case(name: str, data: bytes, expected: Arrays, text: str, section: str) -> Draft:
    return name, CaseFiles(data, text, section, base=[], tensors=describe(expected))
