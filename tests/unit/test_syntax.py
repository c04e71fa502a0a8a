"""Every structure: write, read and list agree; every refusal of the reader happens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnr_codec.bitstream import data_unit as data_unit_module
from nnr_codec.bitstream.bits import BitReader, BitWriter
from nnr_codec.bitstream.codes import CompressionFormat, PayloadType, TopologyFormat
from nnr_codec.bitstream.context import Context
from nnr_codec.bitstream.data_unit import codebook, data_unit, entry_point_count
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
from nnr_codec.bitstream.visitors import Element, ListVisitor, ReadVisitor, Visitor, WriteVisitor
from nnr_codec.errors import (
    BitstreamError,
    InvalidBitstream,
    LimitExceeded,
    TruncatedBitstream,
    UnsupportedFeature,
)
from nnr_codec.options import DecodeLimits

Structure = Callable[[Visitor, Any, Context], None]

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
FLOATS = st.floats(width=32, allow_nan=False)
BITS = st.integers(0, 1)
UE7 = st.integers(0, 2**32 - 1 - 2**7)
BYTES = st.integers(0, 255)
PROFILES = [
    Context(0, ModelParameterSet()),
    Context(1, ModelParameterSet()),
    Context(1, ModelParameterSet(mps_parent_signalling_enabled_flag=1)),
    Context(0, ModelParameterSet(mps_topology_indexed_reference_flag=1)),
]

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
    if mps.has_quantization_parameter:
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
    if lps.has_quantization_parameter:
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


def written(structure: Structure, record: Any, context: Context) -> bytes:
    writer = BitWriter()
    structure(WriteVisitor(writer), record, context)
    return writer.to_bytes()


def read(structure: Structure, factory: type, data: bytes, context: Context) -> Any:
    record = factory()
    reader = BitReader(data, "unit 3 (test)", 1000)
    structure(ReadVisitor(reader, context.limits), record, context)
    assert reader.bits_left < 8
    return record


class RecordingReader(ReadVisitor):
    """A reader that also lists what it reads, for comparison with the lister."""

    def __init__(self, reader: BitReader) -> None:
        super().__init__(reader, DecodeLimits())
        self.elements: list[tuple[str, Any]] = []

    def code(self, element: str, kind: str, size: Any, value: Any) -> Any:
        value = super().code(element, kind, size, value)
        self.elements.append((element, value))
        return value

    def u(self, record: Any, name: str, bits: int) -> None:
        super().u(record, name, bits)
        self.elements.append((name, getattr(record, name)))

    def ue(self, record: Any, name: str, order: int) -> None:
        super().ue(record, name, order)
        self.elements.append((name, getattr(record, name)))

    def present(self, element: str, present: bool) -> bool:
        found = super().present(element, present)
        self.elements.append((element, int(found)))
        return found

    def field(self, record: Any, name: str, kind: str, size: Any, element: str = "") -> None:
        super().field(record, name, kind, size, element)
        self.elements.append((element or name, getattr(record, name)))

    def choice(self, record: Any, name: str, bits: int, codes: Any, element: str = "") -> None:
        super().choice(record, name, bits, codes, element)
        self.elements.append((element or name, getattr(record, name)))

    def values(
        self, record: Any, name: str, count: int, kind: str, size: Any, element: str = ""
    ) -> None:
        super().values(record, name, count, kind, size, element)
        self.elements += [(element or name, value) for value in getattr(record, name)]

    def align(self) -> None:
        super().align()
        self.elements.append(("align", None))


def check_identity(structure: Structure, record: Any, context: Context) -> None:
    before = copy.deepcopy(record)
    data = written(structure, record, context)
    assert record == before, "writing leaves the record alone"
    again = read(structure, type(record), data, context)
    assert again == record
    assert written(structure, again, context) == data
    lister, recorder = ListVisitor(), RecordingReader(BitReader(data))
    structure(lister, record, context)
    structure(recorder, type(record)(), context)
    assert [(e.name, e.value) for e in lister.elements] == recorder.elements
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            read(structure, type(record), data[:length], context)


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


# ---- Refusals -------------------------------------------------------------------------------


class Forger(WriteVisitor):
    """A writer without checks, which replaces the values of some elements."""

    def __init__(self, writer: BitWriter, forged: dict[str, int]) -> None:
        super().__init__(writer)
        self.forged = forged

    def code(self, element: str, kind: str, size: Any, value: Any) -> Any:
        super().code(element, kind, size, self.forged.get(element, value))
        return value

    def choice(self, record: Any, name: str, bits: int, codes: Any, element: str = "") -> None:
        self.code(element or name, "u", bits, int(getattr(record, name)))

    def check(self, condition: bool, element: str, value: object, reason: str) -> None:
        pass

    def unsupported(self, element: str, value: object, reason: str) -> None:
        pass


def forge(
    structure: Structure, record: Any, context: Context, padding: bytes = b"", **forged: int
) -> Any:
    """Write a record with some elements replaced, and read it."""
    writer = BitWriter()
    structure(Forger(writer, forged), record, context)
    data = writer.to_bytes() + padding
    structure(ReadVisitor(BitReader(data), context.limits), type(record)(), context)


def plain(**fields: Any) -> DataUnit:
    return DataUnit(**{"names": ["w"], "tensor_dimensions": [20, 3], **fields})


def block(**fields: Any) -> DataUnit:
    return plain(
        **{
            "payload_type": PayloadType.BLOCK,
            "compressed_parameter_types": 8,
            "names": ["w", "b"],
            **fields,
        }
    )


def decomposed(**fields: Any) -> DataUnit:
    given_fields = {"decomposition_rank": 2, "g_number_of_rows": 20, **fields}
    return block(compressed_parameter_types=1, **given_fields)


WITH_PARENT = plain(parent=Parent(digest=b""))
WITH_BOOK = plain(codebooks=[Codebook(0, 1, [-1, 0, 1])])
SCANNED = plain(scan_order=1, entry_points=[EntryPoint(1, 0, 5), EntryPoint(1, 0, 9)])
WITH_MAPS = ModelParameterSet(
    sparsification_performance_map=[SparsificationEntry()],
    unification_performance_map=[UnificationEntry()],
    decomposition_performance_map=[DecompositionEntry()],
)


@pytest.mark.parametrize(
    ("structure", "record", "context", "forged"),
    [
        (data_unit, plain(), 0, {"nnr_compressed_data_unit_payload_type": 4}),
        (data_unit, plain(), 0, {"nnr_compressed_data_unit_payload_type": 31}),
        (data_unit, plain(), 0, {"nnr_multiple_topology_elements_present_flag": 1}),
        (data_unit, block(), 0, {"nnr_multiple_topology_elements_present_flag": 0}),
        (data_unit, plain(nnr_decompressed_data_format=0), 0, {"nnr_decompressed_data_format": 10}),
        (data_unit, WITH_PARENT, 2, {"parent_node_id_type": 3}),
        (data_unit, plain(), 0, {"scan_order": 5}),
        (data_unit, plain(), 0, {"tensor_dimensions": 0}),
        (data_unit, WITH_BOOK, 0, {"codebook_size": 0}),
        (data_unit, WITH_BOOK, 0, {"codebook_centre_offset": 2}),
        (data_unit, WITH_BOOK, 0, {"codebook_centre_offset": -2}),
        (data_unit, WITH_BOOK, 0, {"codebook_delta_right": 2**31 - 1}),
        (data_unit, WITH_BOOK, 0, {"codebook_delta_left": 2**31}),
        (data_unit, SCANNED, 0, {"offset_delta": -6}),
        (data_unit, decomposed(), 0, {"decomposition_rank": 0}),
        (data_unit, decomposed(), 0, {"g_number_of_rows": 0}),
        (data_unit, decomposed(), 0, {"g_number_of_rows": 7}),
        (data_unit, block(names=["a", "b", "c"]), 0, {}),
        (data_unit, block(compressed_parameter_types=12), 0, {}),
        (data_unit, block(indices=[1, 2, 3]), 3, {}),
        (model_parameter_set, ModelParameterSet(), 0, {"mps_reserved_zero_7bits": 1}),
        (model_parameter_set, ModelParameterSet(), 1, {"mps_reserved_zero_bit": 1}),
        (model_parameter_set, ModelParameterSet(), 1, {"mps_reserved_zero_2bits": 2}),
        (model_parameter_set, ModelParameterSet(), 0, {"mps_quantization_method_flags": 5}),
        (model_parameter_set, WITH_MAPS, 0, {"spm_count_thresholds": 0}),
        (model_parameter_set, WITH_MAPS, 0, {"count_super_block_dimension": 0}),
        (model_parameter_set, WITH_MAPS, 0, {"count_reshaped_tensor_dimension": 0}),
        (layer_parameter_set, LayerParameterSet(), 0, {"lps_reserved_zero_7bits": 1}),
        (layer_parameter_set, LayerParameterSet(), 0, {"lps_reserved_zero_1bit": 1}),
        (layer_parameter_set, LayerParameterSet(), 0, {"lps_quantization_method_flags": 4}),
        (topology_unit, Topology(), 0, {"topology_storage_format": 7}),
        (topology_unit, Topology(), 0, {"topology_compression_format": 2}),
        (quantization_unit, QuantizationData(), 0, {"quantization_compression_format": 2}),
    ],
)
def test_invalid(structure: Structure, record: Any, context: int, forged: dict[str, int]) -> None:
    name = next(iter(forged), "names")
    name = {
        "codebook_centre_offset": "zero_offset",
        "codebook_delta_left": "32 bits",
        "codebook_delta_right": "32 bits",
        "offset_delta": "offset",
    }.get(name, name)
    with pytest.raises(InvalidBitstream, match=name) as caught:
        forge(structure, copy.deepcopy(record), PROFILES[context], b"\x80" * 40, **forged)
    assert not isinstance(caught.value, TruncatedBitstream)


@pytest.mark.parametrize(
    ("structure", "record", "context", "forged"),
    [
        (data_unit, plain(), 1, {"first_tensor_dimension_shift": 1}),
        (topology_unit, Topology(), 0, {"topology_storage_format": 5}),
        (
            topology_unit,
            Topology(TopologyFormat.REFLIST, names=["a", "b"]),
            0,
            {"topology_compression_format": 1},
        ),
        (start_unit, StartUnit(), 0, {"general_profile_idc": 2}),
    ],
)
def test_unsupported(
    structure: Structure, record: Any, context: int, forged: dict[str, int]
) -> None:
    with pytest.raises(UnsupportedFeature, match=next(iter(forged))):
        forge(structure, record, PROFILES[context], **forged)


LIMITS = DecodeLimits(
    max_elements_per_tensor=60, max_dimensions=2, max_name_bytes=3, max_topology_bytes=4,
    max_units=3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("structure", "record", "limit"),
    [
        (data_unit, plain(tensor_dimensions=[20, 4]), "max_elements_per_tensor"),
        (data_unit, plain(tensor_dimensions=[2**31, 2**31]), "max_elements_per_tensor"),
        (data_unit, plain(tensor_dimensions=[2, 2, 2]), "max_dimensions"),
        (data_unit, plain(names=["four"]), "max_name_bytes"),
        (data_unit, decomposed(decomposition_rank=4), "max_elements_per_tensor"),
        (
            data_unit,
            decomposed(g_number_of_rows=1, decomposition_rank=2),
            "max_elements_per_tensor",
        ),
        (data_unit, block(names=["a", "b", "c", "d"]), "max_units"),
        (topology_unit, Topology(topology_data="12345"), "max_topology_bytes"),
        (topology_unit, Topology(TopologyFormat.ONNX, topology_data=b"12345"), "max_topology"),
        (quantization_unit, QuantizationData(quantization_data="12345"), "max_topology_bytes"),
    ],
)
def test_limits(structure: Structure, record: Any, limit: str) -> None:
    context = Context(0, ModelParameterSet(), limits=LIMITS)
    with pytest.raises(LimitExceeded, match=limit):
        forge(structure, record, context)


def test_what_the_limits_allow_passes() -> None:
    context = Context(0, ModelParameterSet(), limits=LIMITS)
    forge(data_unit, plain(names=["abc"]), context)
    forge(data_unit, decomposed(names=["x_G", "x_H"], g_number_of_rows=20), context)
    forge(topology_unit, Topology(topology_data="1234"), context)


def test_unification_dimensions_have_the_limit() -> None:
    entry = UnificationEntry(reshaped_tensor_dimension=[1, 2, 3])
    mps = ModelParameterSet(unification_performance_map=[entry])
    with pytest.raises(LimitExceeded, match="max_dimensions"):
        forge(model_parameter_set, mps, Context(limits=LIMITS))


@pytest.mark.parametrize(
    ("record", "forged"),
    [
        (WITH_BOOK, {"codebook_size": 2**20}),
        (block(), {"count_topology_elements_minus2": 2**19}),
        (plain(scan_order=1, entry_points=[EntryPoint()] * 2), {"tensor_dimensions": 2**14}),
    ],
)
def test_counts_beyond_the_bits_left(record: DataUnit, forged: dict[str, int]) -> None:
    with pytest.raises(TruncatedBitstream, match="bits left in the unit"):
        forge(data_unit, copy.deepcopy(record), PROFILES[0], **forged)


def test_own_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_unit_module, "MAX_CODEBOOK_SIZE", 2)
    monkeypatch.setattr(data_unit_module, "MAX_ENTRY_POINTS", 1)
    with pytest.raises(LimitExceeded, match="max_codebook_size"):
        forge(data_unit, WITH_BOOK, PROFILES[0], b"\x80" * 9)
    with pytest.raises(LimitExceeded, match="max_entry_points"):
        forge(data_unit, SCANNED, PROFILES[0], b"\x80" * 9)


def test_codebook_extremes() -> None:
    def structure(v: Visitor, book: Codebook, context: Context) -> None:
        codebook(v, book)

    check_identity(structure, Codebook(0, 1, [-(2**31), 0, 2**31 - 1]), Context())


@pytest.mark.parametrize(
    "record",
    [
        plain(names=[]),
        plain(names=["a", "b"]),
        block(names=["a", "b", "c"]),
        plain(node_id=NodeId()),
        plain(parent=Parent()),
        plain(codebooks=[Codebook(), Codebook()]),
        plain(payload_type=PayloadType.INT, codebooks=[Codebook()]),
        decomposed(codebooks=[Codebook()]),
        plain(codebooks=[Codebook(values=[3, 2])]),
        plain(codebooks=[Codebook(values=[])]),
        plain(tensor_dimensions=[5], scan_order=1),
        plain(scan_order=1),
        plain(entry_points=[EntryPoint()]),
        plain(tensor_dimensions=[0]),
        plain(dq_flag=2),
        plain(payload_type=9),
        plain(nnr_decompressed_data_format=10),
        plain(input_parameters_present_flag=0),
        plain(cabac_unary_length_minus1=256),
        plain(tensor_dimensions=[None]),
    ],
)
def test_a_record_that_cannot_be_said_is_not_written(record: DataUnit) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        written(data_unit, record, PROFILES[0])


def test_digest_length_and_second_edition() -> None:
    parent = Parent(parent_node_id_type=1, digest=bytes(64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="32 bytes"):
        written(data_unit, plain(parent=parent), PROFILES[2])
    mps = ModelParameterSet(mps_parent_signalling_enabled_flag=1)
    with pytest.raises(ValueError, match="profile 1"):
        written(model_parameter_set, mps, Context(0))


def test_quantization_in_force() -> None:
    mps, silent = ModelParameterSet(), LayerParameterSet(lps_quantization_method_flags=0)
    lps = LayerParameterSet(lps_qp_density=3, lps_quantization_parameter=-7)
    assert Context(0, mps).quantization == (2, 0)
    assert Context(0, mps, lps).quantization == (3, -7)
    assert Context(0, mps, silent).quantization == (2, 0)
    assert Context(0, ModelParameterSet(mps_quantization_method_flags=0)).quantization is None


def test_roles() -> None:
    unit = block(compressed_parameter_types=15)
    assert unit.name_roles() == (
        "G", "H", "local_scaling", "beta", "gamma", "mean", "var", "bias",
    )  # fmt: skip
    assert unit.coding_roles() == (
        "local_scaling", "bias", "beta", "gamma", "mean", "var", "G", "H",
    )  # fmt: skip
    assert plain(compressed_parameter_types=12).name_roles() == ("weight",)
    assert plain(cabac_unary_length_minus1=3).unary_length == 4
    assert plain().unary_length == 10
    assert decomposed().factor_shapes() == ((20, 2), (2, 3))
