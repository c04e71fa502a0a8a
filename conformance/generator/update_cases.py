"""Cases of updates of a base: what the model map says of it, and sums of tensors.

What is expected is computed here from the integers that were coded: the educational decoder does
not know the map. All numbers are small multiples of a quarter, so that every sum is exact.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..suite.cases import CaseFiles, describe
from .building import DataUnit, floats, integers, parameters, ramp, start, topology

Arrays = Mapping[str, npt.NDArray[Any]]
Draft = tuple[str, CaseFiles]
STEP = np.float32(0.25)
SECTION = "Updates of a base (model_map.md)"
SHAPE = (3, 4)


def update_cases() -> Iterator[Draft]:
    for name, files in (*sums(), *structures(), *refused()):
        yield f"updates/{name}", files


def model_digest(arrays: Arrays) -> str:
    """The digest of a model, as the document has it."""
    state = hashlib.sha256()
    for name, values in arrays.items():
        for text in (name.encode(), values.dtype.name.encode()):
            state.update(struct.pack("<Q", len(text)) + text)
        state.update(struct.pack(f"<{1 + values.ndim}Q", values.ndim, *values.shape))
        data = values.astype(values.dtype.newbyteorder("<")).tobytes()
        state.update(struct.pack("<Q", len(data)) + data)
    return state.hexdigest()


def values_of(v: Sequence[int], shape: Sequence[int] = SHAPE) -> npt.NDArray[np.float32]:
    """What integers of the step are."""
    return (np.array(v, np.float32) * STEP).reshape(shape)


def stream_of(units: Sequence[DataUnit], model_map: Mapping[str, Any] | None = None) -> bytes:
    """A stream of the first edition, with a map if one is given."""
    text = "" if model_map is None else json.dumps(model_map, separators=(",", ":"))
    parts = [start(), parameters(), topology(topology_data=text)]
    return b"".join([*parts, *(unit.bytes() for unit in units)])


def update_of(
    base: bytes, model: Arrays, units: Sequence[DataUnit], more: Mapping[str, Any] | None = None
) -> bytes:
    """An update of a base whose last stream and whose model these are."""
    entry = {"stream": hashlib.sha256(base).hexdigest(), "digest": model_digest(model)}
    return stream_of(units, {"nnr_model_map": 2, "base": {**entry, **(more or {})}})


def first() -> tuple[bytes, dict[str, npt.NDArray[Any]]]:
    """A base of two matrices and a vector of integers."""
    w, x, i = ramp(12, 5), ramp(12, 7), ramp(6, 9)
    data = stream_of([floats(w, SHAPE), floats(x, SHAPE, "x"), integers(i, (6,))])
    return data, {"w": values_of(w), "x": values_of(x), "i": np.array(i, np.int32)}


def sums() -> Iterator[Draft]:
    base, model = first()
    moved = [0, 1, -2, 0, 0, 3, 0, -1, 0, 0, 0, 2]
    data = update_of(base, model, [floats(moved, SHAPE)])
    expected = {**model, "w": model["w"] + values_of(moved)}
    text = "a sum of floats; tensors that the update does not hold stay"
    yield _case("float_sum", data, [base], expected, text)
    change = [1, -1, 0, (1 << 31) - 1, 5, 0]
    i = (model["i"].astype(np.int64) + change).astype(np.uint32).view(np.int32)
    data = update_of(base, model, [integers(change, (6,))])
    text = "a sum of integers modulo 2^32"
    yield _case("integer_sum", data, [base], {**model, "i": i}, text)
    data = update_of(base, model, [integers(change, (6,))], {"xor": ["i"]})
    i = model["i"] ^ np.array(change, np.int32)
    yield _case(
        "changed_bits", data, [base], {**model, "i": i}, "integers that say which bits change"
    )
    bits = [3, -5, 0, 1 << 20, 0, 0, 0, 0, 0, 0, 0, -1]
    words = model["w"].reshape(-1).view(np.uint32) + np.array(bits, np.int32).view(np.uint32)
    data = update_of(base, model, [integers(bits, SHAPE, "w")])
    w = words.view(np.float32).reshape(SHAPE)
    yield _case(
        "sum_of_bits", data, [base], {**model, "w": w}, "integers added to the bits of floats"
    )


def structures() -> Iterator[Draft]:
    base, model = first()
    new, other = ramp(4, 3), ramp(8, 5)
    units = [floats(other, (2, 4), "w"), floats(new, (4,), "n")]
    more = {"whole": ["w"], "removed": ["x"], "order": [[2, 1], [0, 2]]}
    data = update_of(base, model, units, more)
    expected = {"n": values_of(new, (4,)), "w": values_of(other, (2, 4)), "i": model["i"]}
    text = "tensors that are replaced, removed and new, in another order"
    yield _case("structure", data, [base], expected, text)
    one = [1] * 12
    second = update_of(base, model, [floats(one, SHAPE)])
    between = {**model, "w": model["w"] + values_of(one)}
    third = update_of(second, between, [floats(one, SHAPE), floats(one, SHAPE, "x")])
    expected = {**between, "w": between["w"] + values_of(one), "x": model["x"] + values_of(one)}
    yield _case("chain", third, [base, second], expected, "an update of an update")


def refused() -> Iterator[Draft]:
    base, model = first()
    moved = [floats([1] * 12, SHAPE)]
    data = update_of(base, model, moved)
    yield _refused("missing_base", data, [], "wrong base", "an update without its base")
    other = stream_of([floats(ramp(12, 5), SHAPE)])
    yield _refused("another_base", data, [other], "wrong base", "an update of another stream")
    wrong = update_of(base, {**model, "i": model["i"] + 1}, moved)
    yield _refused("another_model", wrong, [base], "wrong base", "a base of another digest")
    bad = update_of(base, model, [floats([1] * 12, (4, 3))])
    yield _refused("another_shape", bad, [base], "invalid", "a difference of another shape")


def _case(name: str, data: bytes, base: Sequence[bytes], expected: Arrays, text: str) -> Draft:
    tensors = describe(expected)
    return name, CaseFiles(data, text, SECTION, base=base, tensors=tensors)


def _refused(name: str, data: bytes, base: Sequence[bytes], error: str, text: str) -> Draft:
    return name, CaseFiles(data, text, SECTION, base=base, error=error)
