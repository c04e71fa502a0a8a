"""Every structure: write, read and list agree."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from syntax_support import PROFILES, Structure, check_identity, read, written

from nnr_codec.bitstream.bits import BitReader
from nnr_codec.bitstream.codes import (
    QUANTIZATION_METHODS,
    CompressionFormat,
    PayloadType,
    TopologyFormat,
)
from nnr_codec.bitstream.context import Context
from nnr_codec.bitstream.data_unit import data_unit, entry_point_count
from nnr_codec.bitstream.records import (
    Codebook,
    DataUnit,
    DecompositionEntry,
    EntryPoint,
    LayerParameterSet,
    ModelParameterSet,
    NodeId,
    Parent,
    PruningEntry,
    QuantizationData,
    SparsificationEntry,
    StartUnit,
    Topology,
    UnificationEntry,
    UnitHeader,
)
from nnr_codec.bitstream.syntax import (
    layer_parameter_set,
    model_parameter_set,
    quantization_unit,
    start_unit,
    topology_unit,
    unit_header,
)
from nnr_codec.bitstream.visitors import Element, ListVisitor, ReadVisitor, Visitor
from nnr_codec.errors import BitstreamError

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
FLOATS = st.floats(width=32, allow_nan=False)
BITS = st.integers(0, 1)
UE7 = st.integers(0, 2**32 - 1 - 2**7)
BYTES = st.integers(0, 255)

# ---- Random records -------------------------------------------------------------------------

ACCURACIES = st.lists(FLOATS, max_size=4)
DIMENSIONS = st.lists(BYTES, max_size=4)
MAPS = {
    "sparsification_performance_map": st.builds(
        SparsificationEntry, FLOATS, FLOATS, FLOATS, UE7, ACCURACIES
    ),
    "pruning_performance_map": st.builds(PruningEntry, FLOATS, FLOATS, UE7, ACCURACIES),
    "unification_performance_map": st.builds(
        UnificationEntry,
        st.lists(UE7, max_size=4),
        DIMENSIONS,
        DIMENSIONS,
        FLOATS,
        FLOATS,
        UE7,
        ACCURACIES,
    ),
    "decomposition_performance_map": st.builds(
        DecompositionEntry, FLOATS, FLOATS, FLOATS, ACCURACIES
    ),
}


def optional_maps(count: int) -> dict[str, st.SearchStrategy[Any]]:
    return {
        name: st.none() | st.lists(entry, max_size=3) for name, entry in list(MAPS.items())[:count]
    }


@st.composite
def parameter_sets(draw: st.DrawFn) -> tuple[ModelParameterSet, Context]:
    profile = draw(BITS)
    mps = draw(
        st.builds(
            ModelParameterSet,
            topology_carriage_flag=BITS,
            mps_quantization_method_flags=st.integers(0, 3),
            mps_topology_indexed_reference_flag=BITS,
            **optional_maps(4),
        )
    )
    if mps.mps_quantization_method_flags & QUANTIZATION_METHODS:
        mps.mps_qp_density = draw(st.integers(0, 7))
        mps.mps_quantization_parameter = draw(st.integers(-4096, 4095))
    if profile == 1:
        mps.base_model_id = draw(st.none() | NAMES)
        mps.validation_set_performance = draw(st.none() | FLOATS)
        mps.metric_type_performance_map_valid_flag = draw(BITS)
        mps.mps_parent_signalling_enabled_flag = draw(BITS)
        mps.nnr_pre_flag = draw(BITS) & mps.mps_parent_signalling_enabled_flag
        if mps.validation_set_performance is not None or mps.metric_type_performance_map_valid_flag:
            mps.performance_metric_type = draw(NAMES)
    return mps, Context(profile)


@st.composite
def layer_sets(draw: st.DrawFn) -> tuple[LayerParameterSet, Context]:
    lps = draw(st.builds(LayerParameterSet, BITS, st.integers(0, 3), **optional_maps(3)))
    if lps.lps_quantization_method_flags & QUANTIZATION_METHODS:
        lps.lps_qp_density = draw(st.integers(0, 7))
        lps.lps_quantization_parameter = draw(st.integers(-4096, 4095))
    return lps, Context()


@st.composite
def topologies(draw: st.DrawFn) -> tuple[Topology, Context]:
    storage = draw(st.sampled_from([f for f in TopologyFormat if f != TopologyFormat.PRUN]))
    if storage == TopologyFormat.REFLIST:
        return Topology(storage, names=draw(st.lists(NAMES, min_size=2, max_size=6))), Context()
    compression = draw(st.sampled_from(CompressionFormat))
    is_text = compression == 0 and storage not in (TopologyFormat.NNEF, TopologyFormat.ONNX)
    data = draw(NAMES if is_text else st.binary(max_size=30))
    return Topology(storage, compression, data), Context()


@st.composite
def quantization_units(draw: st.DrawFn) -> tuple[QuantizationData, Context]:
    compression = draw(st.sampled_from(CompressionFormat))
    data = draw(st.binary(max_size=30) if compression else NAMES)
    return QuantizationData(draw(BYTES), compression, data), Context()


@st.composite
def codebooks(draw: st.DrawFn) -> Codebook:
    values = sorted(draw(st.sets(st.integers(-(2**20), 2**20) | st.integers(-9, 9), min_size=1)))
    return Codebook(draw(st.integers(0, 15)), draw(st.integers(0, len(values) - 1)), values)


NODES = st.builds(
    NodeId, st.integers(0, 2**32 - 3), st.integers(0, 2**32 - 33), st.integers(0, 2**32 - 17)
)


@st.composite
def parents(draw: st.DrawFn, has_node: bool) -> Parent:
    parent = Parent(draw(st.integers(0, 2)), draw(BITS))  # type: ignore[arg-type]
    if parent.parent_node_id_type == 0:
        parent.parent_device_id = draw(st.integers(0, 2**32 - 3))
        if not has_node:
            parent.parameter_id = draw(st.integers(0, 2**32 - 33))
            parent.put_node_depth = draw(st.integers(0, 2**32 - 17))
    else:
        size = 32 * parent.parent_node_id_type
        parent.digest = draw(st.binary(min_size=size, max_size=size))
    return parent


def fill_input_parameters(draw: st.DrawFn, unit: DataUnit) -> None:
    unit.cabac_unary_length_minus1 = draw(st.none() | BYTES)
    unit.tensor_dimensions = draw(st.none() | st.lists(st.integers(1, 40), max_size=4))
    types = draw(st.integers(0, 15))
    if unit.is_block and types == 0:
        types = 8
    unit.compressed_parameter_types = types
    if unit.is_decomposed:
        unit.decomposition_rank = draw(st.integers(1, 100))
        size = prod(unit.tensor_dimensions or [])
        rows = [rows for rows in range(1, size + 1) if size % rows == 0][:30]
        unit.g_number_of_rows = draw(st.sampled_from(rows))


def fill_entry_points(draw: st.DrawFn, unit: DataUnit) -> None:
    if len(unit.tensor_dimensions or ()) < 2 or unit.payload_type == PayloadType.RAW_FLOAT:
        return
    unit.scan_order = draw(st.integers(0, 4))
    states = st.integers(0, 7) if unit.dq_flag else st.just(0)
    point = st.builds(EntryPoint, BYTES, states, st.integers(0, 2**31))
    count = entry_point_count(unit)
    unit.entry_points = [draw(point) for _ in range(count)]


@st.composite
def data_units(draw: st.DrawFn) -> tuple[DataUnit, Context]:
    context = draw(st.sampled_from(PROFILES))
    unit = DataUnit(draw(st.sampled_from(PayloadType)))
    if context.profile == 1:
        unit.node_id = draw(st.none() | NODES)
        if context.parent_signalling:
            unit.parent = draw(st.none() | parents(unit.node_id is not None))
    if unit.payload_type != PayloadType.RAW_FLOAT:
        unit.dq_flag = draw(BITS)
    unit.nnr_decompressed_data_format = draw(st.none() | st.integers(0, 9))  # type: ignore[assignment]
    unit.input_parameters_present_flag = 1 if unit.is_block else draw(BITS)
    if unit.input_parameters_present_flag:
        fill_input_parameters(draw, unit)
    if unit.payload_type in (PayloadType.FLOAT, PayloadType.BLOCK) and draw(BITS):
        unit.codebooks = [draw(codebooks()) for _ in range(2 if unit.is_decomposed_block else 1)]
    count = len(unit.name_roles())
    if context.indexed:
        unit.indices = draw(st.lists(UE7, min_size=count, max_size=count))
    else:
        unit.names = draw(st.lists(NAMES, min_size=count, max_size=count))
    fill_entry_points(draw, unit)
    return unit, context


# ---- Write, read, list ----------------------------------------------------------------------


RECORDS = st.one_of(
    st.tuples(st.just(model_parameter_set), parameter_sets()),
    st.tuples(st.just(layer_parameter_set), layer_sets()),
    st.tuples(st.just(quantization_unit), quantization_units()),
    st.tuples(st.just(data_unit), data_units()),
    st.tuples(st.just(start_unit), st.tuples(st.builds(StartUnit, BITS), st.just(Context()))),
)


@given(RECORDS)
def test_write_read_write(case: tuple[Structure, tuple[Any, Context]]) -> None:
    structure, (record, context) = case
    if getattr(record, "quantization_compression_format", 0):
        data = written(structure, record, context)
        assert read(structure, type(record), data, context) == record
    else:
        check_identity(structure, record, context)


@given(topologies())
def test_topology(case: tuple[Topology, Context]) -> None:
    topology, context = case
    data = written(topology_unit, topology, context)
    assert read(topology_unit, Topology, data, context) == topology


@given(st.integers(0, 2**15 - 1), st.integers(0, 63), BITS, st.none() | BYTES)
def test_unit_header(size: int, unit_type: int, flag: int, counter: int | None) -> None:
    header = UnitHeader(0, size, unit_type, flag, counter)

    def structure(v: Visitor, record: UnitHeader, context: Context) -> None:
        unit_header(v, record)

    check_identity(structure, header, Context())
    assert header.byte_length == len(written(structure, header, Context()))


@given(st.sampled_from(PROFILES), st.binary(max_size=80), st.integers(0, 3))
def test_any_bytes_give_a_record_or_a_bitstream_error(
    context: Context, tail: bytes, payload_type: int
) -> None:
    structures = [
        (model_parameter_set, ModelParameterSet),
        (layer_parameter_set, LayerParameterSet),
        (topology_unit, Topology),
        (quantization_unit, QuantizationData),
        (data_unit, DataUnit),
    ]
    start = bytes([payload_type << 3 | (4 if payload_type == 3 else 0) | 1])
    for structure, factory in structures:
        data = start + tail if structure is data_unit else tail
        try:
            record = factory()
            reader = BitReader(data)
            structure(ReadVisitor(reader, context.limits), record, context)  # type: ignore[operator]
        except BitstreamError:
            continue
        length = len(written(structure, record, context))  # type: ignore[arg-type]
        assert length == reader.bytes_read


def test_known_bytes() -> None:
    """The usual parameter set of spec/bitstream.md, in both profiles."""
    assert written(model_parameter_set, ModelParameterSet(), Context()).hex() == "8100400080"
    parents_on = ModelParameterSet(mps_parent_signalling_enabled_flag=1)
    assert written(model_parameter_set, parents_on, Context(1)).hex() == "8108400080"


def test_listing_has_names_and_descriptors() -> None:
    lister = ListVisitor()
    data_unit(lister, DataUnit(names=["w"], tensor_dimensions=[7]), PROFILES[0])
    assert Element("topology_elem_id", "st(v)", "w") in lister.elements
    assert Element("tensor_dimensions", "ue(7)", 7) in lister.elements
    assert lister.elements[0].descriptor == "u(5)"
    assert lister.elements[-1] == Element("align", "align", None)


# ---- Entry points ---------------------------------------------------------------------------

DC_BLOCK = {
    "payload_type": PayloadType.BLOCK,
    "compressed_parameter_types": 1,
    "g_number_of_rows": 64,
    "decomposition_rank": 10,
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tensor_dimensions": [64, 3], "scan_order": 0}, 0),
        ({"tensor_dimensions": [64, 3], "scan_order": 1}, 7),
        ({"tensor_dimensions": [65, 3], "scan_order": 1}, 8),
        ({"tensor_dimensions": [64, 3], "scan_order": 4}, 0),
        ({"tensor_dimensions": [64], "scan_order": 1}, 0),
        ({"tensor_dimensions": [], "scan_order": 1}, 0),
        ({"tensor_dimensions": None, "scan_order": 1}, 0),
        ({"tensor_dimensions": [1, 64], "scan_order": 1}, 0),
        ({"tensor_dimensions": [64, 1], "scan_order": 1}, 7),
        ({**DC_BLOCK, "tensor_dimensions": [64, 3], "scan_order": 1}, 7 + 1),
        ({**DC_BLOCK, "tensor_dimensions": [64, 3], "scan_order": 1, "decomposition_rank": 1}, 7),
        (
            {
                **DC_BLOCK,
                "payload_type": PayloadType.FLOAT,
                "names": ["a_H"],
                "tensor_dimensions": [64, 3],
                "scan_order": 1,
            },
            1,
        ),
        (
            {
                **DC_BLOCK,
                "payload_type": PayloadType.FLOAT,
                "names": ["a_G"],
                "tensor_dimensions": [128, 3],
                "scan_order": 1,
            },
            7,
        ),
    ],
)
def test_entry_point_count(fields: dict[str, Any], expected: int) -> None:
    assert entry_point_count(DataUnit(**fields)) == expected
