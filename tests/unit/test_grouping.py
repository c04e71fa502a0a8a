"""Layers in one unit: which tensors, in which order they come back, and that nothing is lost."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnr_codec
from nnr_codec import EncodeOptions, InvalidBitstream
from nnr_codec.bitstream import (
    Context,
    DataUnit,
    ModelParameterSet,
    ParameterTypes,
    ParsedUnit,
    PayloadType,
    StartUnit,
    Topology,
    parse_units,
    write_record,
)
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.encoding.unit_encoder import CodedLevels, encode_data_unit

Arrays = dict[str, np.ndarray]
NORM = ("weight", "bias", "running_mean", "running_var")


def filled(shapes: dict[str, tuple[int, ...]], dtype: str = "float32") -> Arrays:
    rng = np.random.default_rng(1)
    return {name: rng.normal(0, 0.1, shape).astype(dtype) for name, shape in shapes.items()}


def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (size,) for part in NORM}


def network(layers: int = 3) -> Arrays:
    """Convolutions with bias and batch norm, in PyTorch's order, and a linear layer."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        shapes |= {f"conv{i}.weight": (8, 4, 3, 3), f"conv{i}.bias": (8,), **norm(f"bn{i}", 8)}
    return filled({**shapes, "fc.weight": (5, 8), "fc.bias": (5,)})


def in_name_order(model: Arrays) -> Arrays:
    return {name: model[name] for name in sorted(model)}


def encoded(model: Arrays, **options: Any) -> bytes:
    data = nnr_codec.encode(model, options=EncodeOptions(**options)).data
    assert data is not None
    return data


def units_of(data: bytes) -> list[list[str]]:
    return [p.record.names for p in parse_units(data) if isinstance(p.record, DataUnit)]


def map_of(data: bytes) -> Any:
    return next(p.record.topology_data for p in parse_units(data) if isinstance(p.record, Topology))


def assert_equal(found: Any, expected: Arrays) -> None:
    assert list(found) == list(expected)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize(
    "order", ["as built", "by name", "batch norms last"], ids=lambda text: text.replace(" ", "_")
)
def test_every_way_of_decoding_gives_the_order_of_the_model(order: str) -> None:
    model = network()
    if order == "by name":
        model = in_name_order(model)
    elif order == "batch norms last":  # told by no map: biases alone are grouped
        model = dict(sorted(model.items(), key=lambda item: item[0].startswith("bn")))
    data, alone = encoded(model), encoded(model, group=False)
    expected = nnr_codec.decode(alone)
    assert len(data) < len(alone)
    assert_equal(nnr_codec.decode(data), expected)
    assert_equal(nnr_codec.decode(io.BytesIO(data)), expected)
    with ThreadPoolExecutor(2) as executor:
        assert_equal(nnr_codec.decode(data, executor=executor), expected)
        assert nnr_codec.encode(model, executor=executor).data == data
    with nnr_codec.open(data) as stream:
        assert_equal(dict(stream), expected)
        rows = stream.info().tensors
    assert [row.name for row in rows] == list(model)
    assert [row.shape for row in rows] == [values.shape for values in model.values()]
    assert [row.qp for row in rows] == [-38 if v.ndim > 1 else -75 for v in model.values()]
    only = nnr_codec.decode(data, only="*.bias")
    assert_equal(only, {n: v for n, v in expected.items() if n.endswith(".bias")})


def test_report_has_the_order_of_the_model_and_all_bytes() -> None:
    model = in_name_order(network())
    result = nnr_codec.encode(model)
    assert [tensor.name for tensor in result.report.tensors] == list(model)
    assert result.report.bytes == len(result.data or b"")
    alone = nnr_codec.encode(model, options=EncodeOptions(group=False)).report
    assert result.report.nmse == alone.nmse
    assert {t.name: t.qp for t in result.report.tensors} == {t.name: t.qp for t in alone.tensors}


def test_units_and_maps() -> None:
    data = encoded(network())
    assert units_of(data) == [
        *(
            [
                f"conv{i}.weight",
                *(f"bn{i}.{part}" for part in ("bias", "weight", "running_mean", "running_var")),
                f"conv{i}.bias",
            ]
            for i in range(3)
        ),
        ["fc.weight", "fc.bias"],
    ]
    assert map_of(encoded(network(1))) == ""  # it would take more than it saves
    assert '"order":["weight","bias","gamma","beta","mean","var"]' in map_of(data)
    assert map_of(encoded(in_name_order(network()))) == '{"nnr_model_map":1,"order":"name"}'
    plain = filled({"a.weight": (4, 3), "a.bias": (4,), "b.weight": (4, 3)})
    assert units_of(encoded(plain)) == [["a.weight", "a.bias"], ["b.weight"]]
    assert map_of(encoded(plain)) == ""  # the order of the block's own names


@pytest.mark.parametrize(
    ("shapes", "groups"),
    [
        ({"a.weight": (4, 3), "a.bias": (3,)}, [1, 1]),  # of another length
        ({"a.weight": (4, 3), "a.bias": (4, 1)}, [1, 1]),
        ({"a.weight": (4,), "a.bias": (4,)}, [2]),  # a layer norm
        ({"a/kernel": (3, 4), "a/bias": (4,)}, [1, 1]),  # outputs last, as with Keras
        ({"a/kernel": (4, 4), "a/bias": (4,)}, [1, 1]),  # who knows
        ({"a/kernel:0": (4, 3), "a/bias:0": (4,)}, [2]),
        ({"weight": (4, 3), "bias": (4,)}, [2]),
        ({"a.weight": (4, 3), "b.bias": (4,)}, [1, 1]),
        ({"0.weight": (4, 3), **norm("1", 4)}, [5]),
        ({"0.weight": (4, 3), "x": (2,), **norm("1", 4)}, [1] * 6),  # not together
        ({"0.weight": (4, 3), **norm("1", 5)}, [1] * 5),
        ({"c.weight": (4, 3), "d.weight": (4, 3), **norm("bn", 4)}, [1, 5]),
        (norm("bn", 4), [1] * 4),
    ],
)
def test_what_belongs_together(shapes: dict[str, tuple[int, ...]], groups: list[int]) -> None:
    # Many layers, so that the map pays.
    model = filled({f"l{i}.{name}": shape for i in range(20) for name, shape in shapes.items()})
    data = encoded(model)
    assert [len(names) for names in units_of(data)] == groups * 20
    assert_equal(nnr_codec.decode(data), nnr_codec.decode(encoded(model, group=False)))


@pytest.mark.parametrize(
    "options",
    [
        {"exclude": ("*.bias",)},
        {"overrides": (("*.bias", {"dq": False}),)},
        {"overrides": (("*.bias", {"unary_length": 4}),)},
        {"profile": 1},
        {"group": False},
    ],
)
def test_what_a_block_cannot_say_stays_apart(options: dict[str, Any]) -> None:
    model = filled({"a.weight": (6, 5), "a.bias": (6,)})
    assert units_of(encoded(model, **options)) == [["a.weight"], ["a.bias"]]


@pytest.mark.parametrize(
    "options",
    [
        {"overrides": (("*.bias", {"qp": -50}), ("*.weight", {"qp": -20}))},
        {"dq": False},
        {"dq": False, "qp": -16},
        {"lambda_scale": 1.0, "qp": -20},
        {"scan_order": 1},
        {"search_initialization": False},
        {"unary_length": 3},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
def test_nothing_is_lost(options: dict[str, Any], dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rng = np.random.default_rng(4)
    values = np.array([-0.00801, 0, 0.00007, 0.1269])  # on no coarse step
    weight = rng.choice(values, (40, 30)) * rng.uniform(0.9, 1.1, (40, 30))
    model = {"a.weight": weight, "a.bias": rng.normal(0, 1, 40)}
    model["a.bias"] *= np.logspace(-4, 1, 40)
    model = {name: values.astype(kind) for name, values in model.items()}
    data = encoded(model, **options)
    assert units_of(data) == [list(model)]
    assert_equal(nnr_codec.decode(data), nnr_codec.decode(encoded(model, group=False, **options)))


def test_mixed_types_stay_apart() -> None:
    model = {"a.weight": np.ones((3, 2), np.float32), "a.bias": np.ones(3, np.float16)}
    assert len(units_of(encoded(model))) == 2


def test_a_series_goes_on_from_grouped_streams() -> None:
    """Contexts find tensors by name; the update itself has a unit for each."""
    model = network()
    base = encoded(model, qp=-20)
    options = EncodeOptions(qp=-20)
    update = nnr_codec.encode(model, options=options, parents=[base]).data or b""
    assert len(units_of(base)) < len(units_of(update)) == len(model)
    assert len(update) < len(base)  # the contexts pay
    assert_equal(nnr_codec.decode(update, parents=[base]), nnr_codec.decode(base))


def test_ties_empty_tensors_and_scalars_keep_their_places() -> None:
    model = in_name_order(network())
    parameters: list[nnr_codec.model.Parameter] = []
    for name, values in model.items():
        parameters.append(nnr_codec.model.Parameter.from_array(name, values))
        if name == "bn1.weight":
            parameters.append(nnr_codec.model.Parameter.from_array("bn1.x", np.zeros((0, 2))))
            tied = nnr_codec.model.Parameter(
                "bn1.y", values.shape, values.dtype, lambda v=values: v, "bn1.weight"
            )
            parameters.append(tied)
    parameters.append(nnr_codec.model.Parameter.from_array("zz", np.float32(3)))
    data = nnr_codec.encode(nnr_codec.model.Model(parameters)).data or b""
    assert "order" in map_of(data)
    found = nnr_codec.decode(data)
    assert list(found) == [parameter.name for parameter in parameters]
    assert found["bn1.y"].tobytes() == found["bn1.weight"].tobytes()
    with nnr_codec.open(data) as stream:
        assert_equal(dict(stream), found)
    for parsed in parse_units(data):  # as other processes get them
        assert isinstance(pickle.loads(pickle.dumps(parsed)), ParsedUnit)


def test_a_pipe_is_held_back_by_one_unit_at_most() -> None:
    data = encoded(in_name_order(network(12)))
    file = io.BytesIO(data)
    ends = np.cumsum([p.unit.size for p in parse_units(data)])
    first_units = [p.record.names for p in parse_units(data) if isinstance(p.record, DataUnit)]
    tensors = StreamDecoder().tensors(file)
    assert next(tensors).name == min(first_units[0])
    assert file.tell() == ends[4]  # start, parameters, topology, and two data units


def block_stream(model_map: str, units: Sequence[dict[str, str]]) -> bytes:
    """Blocks of one row, with these names by role."""
    context = Context(0, ModelParameterSet())
    data = write_record(StartUnit()) + write_record(ModelParameterSet())
    data += write_record(Topology(topology_data=model_map))
    for names in units:
        types = ParameterTypes.BI if "bias" in names else 0
        types |= ParameterTypes.DC if "G" in names else 0
        record = DataUnit(
            PayloadType.BLOCK if types else PayloadType.FLOAT,
            list(names.values()),
            compressed_parameter_types=int(types),
            decomposition_rank=1 if "G" in names else None,
            g_number_of_rows=2 if "G" in names else None,
            tensor_dimensions=[2, 2],
        )
        sizes = {role: 4 if role == "weight" else 2 for role in names}
        levels = {role: CodedLevels(np.ones(size, np.int32)) for role, size in sizes.items()}
        data += encode_data_unit(record, levels, context)
    return data


def test_by_name_across_units() -> None:
    stream = block_stream(
        '{"nnr_model_map":1,"order":"name"}',
        [{"weight": "z", "bias": "a"}, {"weight": "c", "bias": "b"}, {"weight": "y"}],
    )
    assert list(nnr_codec.decode(stream)) == ["a", "b", "c", "y", "z"]
    with nnr_codec.open(stream) as opened:
        assert list(opened) == ["a", "b", "c", "y", "z"]


@pytest.mark.parametrize("order", ["", '{"nnr_model_map":1,"order":"name"}'])
def test_info_has_the_order_of_the_factors(order: str) -> None:
    """A unit's least name may be that of the product, which has no row."""
    units = [{"weight": "a", "bias": "n_C"}, {"G": "n_G", "H": "n_H"}, {"weight": "n_B"}]
    stream = block_stream(order, units)
    with nnr_codec.open(stream, layers="factorized") as opened:
        names = [tensor.name for tensor in opened.info().tensors]
        assert names == list(opened) == list(nnr_codec.decode(stream, layers="factorized"))
    in_stream = [name for unit in units for name in unit.values()]
    assert names == (sorted(in_stream) if order else in_stream)


@pytest.mark.parametrize(
    ("order", "units"),
    [
        ('"name"', [{"weight": "b"}, {"weight": "a"}]),
        ('"name"', [{"weight": "c", "bias": "b"}, {"weight": "d", "bias": "a"}]),
        ('"names"', []),
        ("[]", []),
        ("{}", []),
        ("null", []),
        ("3", []),
        ('["weight","weight"]', []),
        ('["G"]', []),
        ("[[]]", []),
        ("[1]", []),
    ],
)
def test_hostile_orders_are_refused(order: str, units: list[dict[str, str]]) -> None:
    stream = block_stream(f'{{"nnr_model_map":1,"order":{order}}}', [*units, {"weight": "w"}])
    with pytest.raises(InvalidBitstream):
        nnr_codec.decode(stream)
    with pytest.raises(InvalidBitstream):
        nnr_codec.open(stream)


def test_extras_refer_to_the_order_of_the_model() -> None:
    tie = '{"nnr_model_map":1,"extras":[{"name":"e","after":"%s","tied_to":"%s"}],"order":"name"}'
    units = [{"weight": "z", "bias": "a"}, {"weight": "c"}]
    found = nnr_codec.decode(block_stream(tie % ("z", "c"), units))
    assert list(found) == ["a", "c", "z", "e"]
    with pytest.raises(InvalidBitstream, match="do not precede"):
        nnr_codec.decode(block_stream(tie % ("c", "z"), units))


names = st.sampled_from(["a.", "b.", "a.1.", "bn.", "conv."])
suffixes = st.sampled_from(["weight", "bias", "running_mean", "running_var", "kernel", "gamma"])


@settings(deadline=None, max_examples=200)
@given(
    tensors=st.dictionaries(
        st.builds(str.__add__, names, suffixes), st.sampled_from([(2,), (3,), (3, 2), (2, 2)])
    ),
    by_name=st.booleans(),
)
def test_any_model_comes_back_in_no_more_bytes(
    tensors: dict[str, tuple[int, ...]], by_name: bool
) -> None:
    model = filled(tensors)
    if by_name:
        model = in_name_order(model)
    data, alone = encoded(model), encoded(model, group=False)
    assert len(data) <= len(alone)
    assert_equal(nnr_codec.decode(data), nnr_codec.decode(alone))
