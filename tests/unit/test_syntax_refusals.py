"""Every refusal of the headers' syntax happens, in what is read and in what is to be written."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from syntax_support import PROFILES, Structure, check_identity, written

from nnr_codec.bitstream import data_unit as data_unit_module
from nnr_codec.bitstream.bits import BitReader, BitWriter
from nnr_codec.bitstream.codes import PayloadType, TopologyFormat
from nnr_codec.bitstream.context import Context
from nnr_codec.bitstream.data_unit import codebook, data_unit
from nnr_codec.bitstream.records import (
    Codebook,
    DataUnit,
    DecompositionEntry,
    EntryPoint,
    LayerParameterSet,
    ModelParameterSet,
    NodeId,
    Parent,
    QuantizationData,
    SparsificationEntry,
    StartUnit,
    Topology,
    UnificationEntry,
)
from nnr_codec.bitstream.syntax import (
    layer_parameter_set,
    model_parameter_set,
    quantization_unit,
    start_unit,
    topology_unit,
)
from nnr_codec.bitstream.visitors import ReadVisitor, Visitor, WriteVisitor
from nnr_codec.errors import InvalidBitstream, LimitExceeded, TruncatedBitstream, UnsupportedFeature
from nnr_codec.options import DecodeLimits


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
