"""What units hold: one dataclass per structure, its attributes named like the syntax elements.

A flag that only says whether something follows is a property, derived from what it announces
(``None`` or an empty list: absent), so that the two cannot contradict each other. The defaults
make the usual stream short to write. See spec/bitstream.md, "Parameter sets and topology" and
"Compressed data unit".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from ..factorization.tensor_order import NameRole
from .codes import (
    CompressionFormat,
    DataFormat,
    ParameterTypes,
    ParentType,
    PayloadType,
    TopologyFormat,
)

# As plain numbers: arithmetic with enumerations is slow.
_DC, _LS, _BN, _BI = (
    int(bit) for bit in (ParameterTypes.DC, ParameterTypes.LS, ParameterTypes.BN, ParameterTypes.BI)
)


@dataclass(slots=True)
class UnitHeader:
    """The common head of every unit; ``nnr_unit_size`` is in bytes, itself included."""

    nnr_unit_size_flag: int = 0
    nnr_unit_size: int = 0
    nnr_unit_type: int = 0
    independently_decodable_flag: int = 1
    partial_data_counter: int | None = None

    @property
    def size_bits(self) -> int:
        """Bits of nnr_unit_size: 15 or 31."""
        return 31 if self.nnr_unit_size_flag else 15

    @property
    def byte_length(self) -> int:
        """Bytes of this header: 3 to 6."""
        return (self.size_bits + 1) // 8 + (1 if self.partial_data_counter is None else 2)


@dataclass(slots=True)
class StartUnit:
    """NNR_STR: the profile, 0 (first edition) or 1 (second edition)."""

    general_profile_idc: int = 0


@dataclass(slots=True)
class SparsificationEntry:
    """One operating point of a sparsification performance map."""

    sparsification_threshold: float = 0.0
    non_zero_ratio: float = 0.0
    spm_nn_accuracy: float = 0.0
    spm_class_bitmask: int = 0
    spm_nn_class_accuracy: list[float] = field(default_factory=list)


@dataclass(slots=True)
class PruningEntry:
    """One operating point of a pruning performance map."""

    pruning_ratio: float = 0.0
    ppm_nn_accuracy: float = 0.0
    ppm_class_bitmask: int = 0
    ppm_nn_class_accuracy: list[float] = field(default_factory=list)


@dataclass(slots=True)
class UnificationEntry:
    """One operating point of a unification performance map."""

    reshaped_tensor_dimension: list[int] = field(default_factory=list)
    super_block_dimension: list[int] = field(default_factory=list)
    block_dimension: list[int] = field(default_factory=list)
    unification_threshold: float = 0.0
    upm_nn_accuracy: float = 0.0
    upm_class_bitmask: int = 0
    upm_nn_class_accuracy: list[float] = field(default_factory=list)


@dataclass(slots=True)
class DecompositionEntry:
    """One operating point of a decomposition performance map."""

    mse_threshold: float = 0.0
    dpm_nn_accuracy: float = 0.0
    nn_reduction_ratio: float = 0.0
    dpm_nn_class_accuracy: list[float] = field(default_factory=list)


@dataclass(slots=True)
class ModelParameterSet:
    """NNR_MPS. What is None is absent; the model id, parents and metric are profile 1's."""

    topology_carriage_flag: int = 1
    mps_quantization_method_flags: int = 1
    mps_topology_indexed_reference_flag: int = 0
    base_model_id: str | None = None
    metric_type_performance_map_valid_flag: int = 0
    mps_parent_signalling_enabled_flag: int = 0
    nnr_pre_flag: int = 0
    performance_metric_type: str = ""
    mps_qp_density: int = 2
    mps_quantization_parameter: int = 0
    sparsification_performance_map: list[SparsificationEntry] | None = None
    pruning_performance_map: list[PruningEntry] | None = None
    unification_performance_map: list[UnificationEntry] | None = None
    decomposition_performance_map: list[DecompositionEntry] | None = None
    validation_set_performance: float | None = None


@dataclass(slots=True)
class LayerParameterSet:
    """NNR_LPS: replaces the model's parameters for the data units that follow."""

    lps_self_contained_flag: int = 0
    lps_quantization_method_flags: int = 1
    lps_qp_density: int = 2
    lps_quantization_parameter: int = 0
    sparsification_performance_map: list[SparsificationEntry] | None = None
    pruning_performance_map: list[PruningEntry] | None = None
    unification_performance_map: list[UnificationEntry] | None = None


@dataclass(slots=True)
class Topology:
    """NNR_TPL.

    ``topology_data`` is text for raw UNREC, PYT and TEF data, and bytes otherwise (deflated data
    is not inflated). ``names`` are a REFLIST's element identifiers, two or more.
    """

    topology_storage_format: TopologyFormat = TopologyFormat.UNREC
    topology_compression_format: CompressionFormat = CompressionFormat.RAW
    topology_data: str | bytes = ""
    names: list[str] = field(default_factory=list)


@dataclass(slots=True)
class QuantizationData:
    """NNR_QNT; ``quantization_data`` is text if raw and bytes if deflated."""

    quantization_storage_format: int = 0
    quantization_compression_format: CompressionFormat = CompressionFormat.RAW
    quantization_data: str | bytes = ""


@dataclass(slots=True)
class Codebook:
    """Strictly increasing 32-bit integers; integer k of the tensor means values[k + zero_offset].

    ``codebook_egk``, 0 to 15, is the order of the codes for the differences.
    """

    codebook_egk: int = 0
    zero_offset: int = 0
    values: list[int] = field(default_factory=lambda: [0])


@dataclass(slots=True)
class EntryPoint:
    """Where a block row starts: 8 bits of the decoder's value, its dq state, and the distance in
    bits from the start of the block row before."""

    value8: int = 0
    dq_state: int = 0
    offset: int = 0


@dataclass(slots=True)
class NodeId:
    """The identity of a data unit in a series of updates."""

    device_id: int = 0
    parameter_id: int = 0
    put_node_depth: int = 0


@dataclass(slots=True)
class Parent:
    """What an update refers to.

    ``parent_device_id`` is used with ICNN_NDU_ID, ``parameter_id`` and ``put_node_depth`` where
    moreover the unit has no node id of its own; ``digest`` (32 or 64 bytes) with the others.
    """

    parent_node_id_type: ParentType = ParentType.ICNN_NDU_ID
    temporal_context_modeling_flag: int = 0
    parent_device_id: int = 0
    parameter_id: int = 0
    put_node_depth: int = 0
    digest: bytes = b""


@dataclass(slots=True)
class DataUnit:
    """The header of an NNR_NDU: one tensor, or for BLOCK the tensors of a layer.

    Attributes:
        payload_type: nnr_compressed_data_unit_payload_type.
        names: the tensor's name; for BLOCK the names in the order of :meth:`name_roles`.
        indices: stands for ``names`` in the syntax when the MPS has
            mps_topology_indexed_reference_flag; the stream parser then adds the names.
        codebooks: at most one; for a decomposed BLOCK none or two (G's and H's).
        compressed_parameter_types: bits of ParameterTypes.
        tensor_dimensions: None if absent.
        cabac_unary_length_minus1: N - 1, 0 to 255; None if absent, which means N = 10.
        scan_order: 0 row by row; s > 0: blocks of side 4 << s.
        entry_points: one per block row after the first, see ``entry_point_count``.
    """

    payload_type: PayloadType = PayloadType.FLOAT
    names: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    node_id: NodeId | None = None
    parent: Parent | None = None
    codebooks: list[Codebook] = field(default_factory=list)
    dq_flag: int = 0
    nnr_decompressed_data_format: DataFormat | None = None
    input_parameters_present_flag: int = 1
    compressed_parameter_types: int = 0
    decomposition_rank: int = 0
    g_number_of_rows: int = 0
    tensor_dimensions: list[int] | None = None
    cabac_unary_length_minus1: int | None = None
    first_tensor_dimension_shift: int = 0
    scan_order: int = 0
    entry_points: list[EntryPoint] = field(default_factory=list)

    @property
    def is_block(self) -> bool:
        """Whether the unit holds several tensors."""
        return self.payload_type == PayloadType.BLOCK

    @property
    def is_decomposed(self) -> bool:
        """Whether the unit has the DC bit: rank and rows of G are present."""
        return bool(self.compressed_parameter_types & _DC)

    @property
    def is_decomposed_block(self) -> bool:
        """Whether the unit holds both factors G and H."""
        return self.is_block and self.is_decomposed

    @property
    def is_separate_factor(self) -> bool:
        """Whether the unit holds one of the factors G and H, which its name's ending tells."""
        named = bool(self.names) and self.names[0].endswith(("_G", "_H"))
        return self.is_decomposed and not self.is_block and named

    @property
    def unary_length(self) -> int:
        """N, the number of greater-than flags."""
        value = self.cabac_unary_length_minus1
        return 10 if value is None else value + 1

    @property
    def element_type(self) -> str:
        """What nnr_decompressed_data_format, or its absence, says: "float32", "int4", …"""
        if self.nnr_decompressed_data_format is not None:
            return self.nnr_decompressed_data_format.name.lower()
        return "int32" if self.payload_type == PayloadType.INT else "float32"

    @property
    def element_count(self) -> int:
        """Elements of the (recomposed) weight; 0 if the unit has no dimensions."""
        return prod(self.tensor_dimensions) if self.tensor_dimensions else 0

    @property
    def dense_name(self) -> str:
        """The name of the weight that a decomposed BLOCK's factors stand for."""
        return self.names[0].removesuffix("_G")

    def decoded_roles(self) -> list[NameRole]:
        """(name, role) of everything that the unit decodes to; the product's role is "dense"."""
        pairs = list(map(NameRole, self.names, self.name_roles()))
        return [*pairs, NameRole(self.dense_name, "dense")] if self.is_decomposed_block else pairs

    @property
    def decoded_elements(self) -> int:
        """Elements of everything that the unit decodes to."""
        if not self.compressed_parameter_types:
            return self.element_count  # the usual unit, with one tensor
        vectors = len(self.name_roles()) - (2 if self.is_decomposed_block else 1)
        count = self.element_count + vectors * (self.tensor_dimensions or [0])[0]
        if self.is_decomposed_block:
            count += sum(rows * cols for rows, cols in self.factor_shapes())
        elif self.is_separate_factor:
            count = prod(self.weight_shapes()[0])
        return count

    def name_roles(self) -> tuple[str, ...]:
        """The roles of the unit's tensors, in the order of its names."""
        if not self.is_block:
            return ("weight",)
        types = self.compressed_parameter_types
        roles = ["G", "H"] if self.is_decomposed else ["weight"]
        roles += ["local_scaling"] if types & _LS else []
        roles += ["beta", "gamma", "mean", "var"] if types & _BN else []
        roles += ["bias"] if types & _BI else []
        return tuple(roles)

    def coding_roles(self) -> tuple[str, ...]:
        """The roles of the unit's tensors, in the order of the payload."""
        if not self.is_block:
            return self.name_roles()
        order = ("local_scaling", "bias", "beta", "gamma", "mean", "var", "weight", "G", "H")
        return tuple(sorted(self.name_roles(), key=order.index))

    def weight_shapes(self) -> list[tuple[int, ...]]:
        """The shape of the weight, or of what the unit has of its factors: G, H, or one of them."""
        if self.is_decomposed_block:
            return list(self.factor_shapes())
        if self.is_separate_factor:
            return [self.factor_shapes()[self.names[0].endswith("_H")]]
        return [tuple(self.tensor_dimensions or ())]

    def factor_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shapes (rows, columns) of G and H of a decomposed unit that has dimensions."""
        rows, rank = self.g_number_of_rows, self.decomposition_rank
        return (rows, rank), (rank, self.element_count // rows)
