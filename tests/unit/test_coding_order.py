"""The order of tensors in a stream: by size, name and first use, with what has to stay together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.bitstream import DataUnit, parse_units
from nnr_codec.encoding.arrangement.coding_order import in_coding_order
from nnr_codec.factorization.forms import LowRank
from nnr_codec.model import Array, Model, Parameter
from nnr_codec.options import DecompositionOptions

SHAPES: dict[str, tuple[int, ...]] = {
    "stem.conv.weight": (8, 3, 3, 3),
    "stem.bn.weight": (8,),
    "stem.bn.bias": (8,),
    "stem.bn.running_mean": (8,),
    "stem.bn.running_var": (8,),
    "stem.bn.num_batches_tracked": (),
    "body.weight": (24, 72),
    "body.bias": (24,),
    "scale": (5,),
    "head.weight": (4, 24),
    "head.bias": (4,),
    "empty": (0, 3),
}
STEM = [name for name in SHAPES if name.startswith("stem") and "num" not in name]
COUNTER = "stem.bn.num_batches_tracked"
BODY, HEAD = ["body.weight", "body.bias"], ["head.weight", "head.bias"]


def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    made = {n: np.abs(rng.normal(0.5, 0.1, s)).astype(np.float32) for n, s in SHAPES.items()}
    made[COUNTER] = np.array(3, np.int64)
    return made


def names(order: Any, execution: Sequence[str] = ()) -> list[str]:
    return in_coding_order(Model.from_arrays(arrays()), order, execution).names()


def test_as_in_the_file() -> None:
    model = Model.from_arrays(arrays())
    assert in_coding_order(model, "file") is model


def test_smallest_first() -> None:
    assert names("size") == ["empty", COUNTER, "scale", *HEAD, *STEM, *BODY]


def test_by_name() -> None:
    assert names("name") == sorted(SHAPES)


def test_by_first_use() -> None:
    used = ["body.bias", "stem.bn.weight", "stem.conv.weight", COUNTER, "head.weight"]
    assert names("execution", used) == [*BODY, *STEM, COUNTER, *HEAD, "scale", "empty"]
    assert names("execution", [*used, "elsewhere"]) == names("execution", used)


def tied_model() -> Model:
    """Two tensors that are tied to the second one, and one that is tied to one of these."""
    values = {name: np.full((4, size), size, np.float32) for name, size in (("z", 9), ("m", 5))}
    plain = [Parameter.from_array(name, array) for name, array in values.items()]
    ties = [
        Parameter("y", (4, 5), np.dtype(np.float32), lambda: values["m"], "m"),
        Parameter("a", (4, 5), np.dtype(np.float32), lambda: values["m"], "y"),
    ]
    return Model([*plain, *ties])


@pytest.mark.parametrize(
    ("order", "expected"), [("size", "myaz"), ("name", "myaz"), ("execution", "myaz")]
)
def test_ties_stay_behind_what_they_are_tied_to(order: Any, expected: str) -> None:
    model = tied_model()
    assert "".join(in_coding_order(model, order, ["a", "z"])) == expected
    assert "".join(in_coding_order(model, "execution", ["z", "a"])) == "zmya"
    result = nnr_codec.encode(model, options=EncodeOptions(order="size"), verify=True)
    decoded = nnr_codec.decode(result.data or b"")
    assert "".join(decoded) == "myaz"
    assert decoded["a"] is decoded["m"]


def deep_model() -> dict[str, Array]:
    """Several layers like the stem, for which it pays to share units, and the model itself."""
    return {
        name if number == 3 else name.replace("stem", f"part{number}"): values
        for number in range(4)
        for name, values in arrays().items()
        if number == 3 or name.startswith("stem")
    }


def units(data: bytes) -> list[list[str]]:
    """Return the names of the tensors of each unit."""
    records = [parsed.record for parsed in parse_units(data)]
    return [record.names for record in records if isinstance(record, DataUnit)]


def payloads(data: bytes) -> dict[str, bytes]:
    return {
        parsed.record.names[0]: bytes(parsed.payload)
        for parsed in parse_units(data)
        if isinstance(parsed.record, DataUnit)
    }


@pytest.mark.parametrize("order", ["size", "name", "execution"])
@pytest.mark.parametrize("group", [True, False])
def test_the_stream_has_that_order_and_the_same_tensors(order: Any, group: bool) -> None:
    model, execution = deep_model(), ["head.weight", "body.weight"]
    usual = nnr_codec.encode(model, options=EncodeOptions(group=group)).data or b""
    options = EncodeOptions(order=order, group=group)
    result = nnr_codec.encode(model, options=options, execution=execution, verify=True)
    data = result.data or b""
    decoded, expected = nnr_codec.decode(data), nnr_codec.decode(usual)
    arranged = in_coding_order(Model.from_arrays(model), order, execution).names()
    assert list(decoded) == arranged != list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(decoded[name], values, strict=True)
    assert sorted(map(sorted, units(data))) == sorted(map(sorted, units(usual)))
    assert any(len(unit) > 1 for unit in units(data)) == group
    assert payloads(data) == payloads(usual)
    if not group:
        coded = [name for unit in units(data) for name in unit]
        assert coded == [name for name in decoded if name != "empty"]


@pytest.mark.parametrize("carriage", ["dc", "factors"])
def test_factors_come_in_place_of_their_weight(carriage: Any) -> None:
    rng = np.random.default_rng(1)
    factors = (rng.normal(size=(24, 2)), rng.normal(size=(2, 72)))
    weight = LowRank((24, 72), tuple(factor.astype(np.float32) for factor in factors))
    model = arrays() | {"body.weight": weight.to_dense()}
    options = EncodeOptions(order="size", decomposition=DecompositionOptions(carriage=carriage))
    data = nnr_codec.encode(
        model, options=options, factorizations={"body.weight": weight}, verify=True
    ).data
    assert list(nnr_codec.decode(data or b"")) == names("size")
    kinds = ("_G", "_H") if carriage == "dc" else (".factor0", ".factor1")
    found = list(nnr_codec.decode(data or b"", layers="factorized"))
    start = found.index("body.weight" + kinds[0])
    assert found[start + 1] == "body.weight" + kinds[1]
    assert found[start - len(STEM) : start] == STEM


def test_execution_needs_what_tells_it() -> None:
    with pytest.raises(nnr_codec.InvalidOptions, match="order: 'execution' needs a module"):
        nnr_codec.encode(arrays(), options=EncodeOptions(order="execution"))
    with pytest.raises(nnr_codec.InvalidOptions, match="order"):
        EncodeOptions(order="backwards")  # type: ignore[arg-type]
