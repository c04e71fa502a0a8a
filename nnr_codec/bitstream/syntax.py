"""The syntax of the headers, each structure declared once as a function over a visitor.

Read top to bottom, a function is the syntax table of spec/bitstream.md; a condition looks at the
record's attributes, which a reader has filled by then. ``check`` and ``limit`` are the refusals
of spec/limits.md. The data unit is in :mod:`.data_unit`.
"""

from __future__ import annotations

from typing import Any

from .codes import QUANTIZATION_METHODS, CompressionFormat, TopologyFormat
from .context import Context
from .records import (
    DecompositionEntry,
    LayerParameterSet,
    ModelParameterSet,
    PruningEntry,
    QuantizationData,
    SparsificationEntry,
    StartUnit,
    Topology,
    UnificationEntry,
    UnitHeader,
)
from .visitors import Visitor


def unit_header(v: Visitor, header: UnitHeader) -> None:
    """The common head of every unit ("Units")."""
    v.u(header, "nnr_unit_size_flag", 1)
    v.u(header, "nnr_unit_size", header.size_bits)
    v.u(header, "nnr_unit_type", 6)
    v.u(header, "independently_decodable_flag", 1)
    partial = header.partial_data_counter is not None
    if v.present("partial_data_counter_present_flag", partial):
        v.u(header, "partial_data_counter", 8)


def start_unit(v: Visitor, start: StartUnit, context: Context) -> None:
    """NNR_STR ("Units")."""
    v.u(start, "general_profile_idc", 8)
    if start.general_profile_idc > 1:
        v.unsupported("general_profile_idc", start.general_profile_idc, "unknown profile")


# ---- Parameter sets -----------------------------------------------------------------------


def model_parameter_set(v: Visitor, mps: ModelParameterSet, context: Context) -> None:
    """NNR_MPS ("Parameter sets and topology")."""
    v.u(mps, "topology_carriage_flag", 1)
    maps = [
        v.present("mps_sparsification_flag", mps.sparsification_performance_map is not None),
        v.present("mps_pruning_flag", mps.pruning_performance_map is not None),
        v.present("mps_unification_flag", mps.unification_performance_map is not None),
        v.present(
            "mps_decomposition_performance_map_flag", mps.decomposition_performance_map is not None
        ),
    ]
    _method_flags(v, mps, "mps_quantization_method_flags")
    v.u(mps, "mps_topology_indexed_reference_flag", 1)
    has_performance = False
    if context.profile == 1:
        has_performance = _second_edition_flags(v, mps)
    else:
        v.zero("mps_reserved_zero_7bits", 7)
        parents = mps.mps_parent_signalling_enabled_flag
        v.check(not parents, "mps_parent_signalling_enabled_flag", parents, "needs profile 1")
    if mps.mps_quantization_method_flags & QUANTIZATION_METHODS:
        v.u(mps, "mps_qp_density", 3)
        v.field(mps, "mps_quantization_parameter", "i", 13)
    for present, structure in zip(maps, _PERFORMANCE_MAPS, strict=True):
        if present:
            structure(v, mps)
    if has_performance:
        v.flt(mps, "validation_set_performance")
    v.align()


def _method_flags(v: Visitor, parameters: Any, name: str) -> None:
    v.u(parameters, name, 3)
    flags = getattr(parameters, name)
    v.check(flags < 4, name, flags, "reserved bit set")


def _second_edition_flags(v: Visitor, mps: ModelParameterSet) -> bool:
    """Profile 1's part of the MPS; whether validation_set_performance is present."""
    has_model_id = v.present("base_model_id_present_flag", mps.base_model_id is not None)
    has_performance = v.present(
        "validation_set_performance_present_flag", mps.validation_set_performance is not None
    )
    v.u(mps, "metric_type_performance_map_valid_flag", 1)
    v.u(mps, "mps_parent_signalling_enabled_flag", 1)
    if mps.mps_parent_signalling_enabled_flag:
        v.u(mps, "nnr_pre_flag", 1)
    else:
        v.zero("mps_reserved_zero_bit", 1)
    v.zero("mps_reserved_zero_2bits", 2)
    if has_model_id:
        v.st(mps, "base_model_id")
    if has_performance or mps.metric_type_performance_map_valid_flag:
        v.st(mps, "performance_metric_type")
    return has_performance


def layer_parameter_set(v: Visitor, lps: LayerParameterSet, context: Context) -> None:
    """NNR_LPS ("Parameter sets and topology")."""
    v.u(lps, "lps_self_contained_flag", 1)
    v.zero("lps_reserved_zero_7bits", 7)
    v.zero("lps_reserved_zero_1bit", 1)
    maps = [
        v.present("lps_sparsification_flag", lps.sparsification_performance_map is not None),
        v.present("lps_pruning_flag", lps.pruning_performance_map is not None),
        v.present("lps_unification_flag", lps.unification_performance_map is not None),
    ]
    _method_flags(v, lps, "lps_quantization_method_flags")
    v.zero("lps_reserved_zero_1bit", 1)
    if lps.lps_quantization_method_flags & QUANTIZATION_METHODS:
        v.u(lps, "lps_qp_density", 3)
        v.field(lps, "lps_quantization_parameter", "i", 13)
    for present, structure in zip(maps, _PERFORMANCE_MAPS[:3], strict=True):
        if present:
            structure(v, lps)
    v.align()


def _entries(v: Visitor, owner: Any, name: str, count_name: str, factory: type) -> Any:
    """The entries of a performance map; the count that is coded is one more than them."""
    count = v.count(count_name, "u", 8, len(getattr(owner, name) or ()), -1)
    return v.each(owner, name, count, factory)


def _class_accuracies(v: Visitor, entry: Any, prefix: str) -> None:
    """Count, bit mask and accuracies of the classes of one operating point."""
    name = f"{prefix}_nn_class_accuracy"
    count = v.count(f"{prefix}_count_classes", "u", 8, len(getattr(entry, name)))
    v.ue(entry, f"{prefix}_class_bitmask", 7)
    v.values(entry, name, count, "flt", 32)


def sparsification_performance_map(v: Visitor, owner: Any) -> None:
    """Accuracy against sparsity."""
    name = "sparsification_performance_map"
    for entry in _entries(v, owner, name, "spm_count_thresholds", SparsificationEntry):
        v.flt(entry, "sparsification_threshold")
        v.flt(entry, "non_zero_ratio")
        v.flt(entry, "spm_nn_accuracy")
        _class_accuracies(v, entry, "spm")


def pruning_performance_map(v: Visitor, owner: Any) -> None:
    """Accuracy against pruning ratio."""
    name = "pruning_performance_map"
    for entry in _entries(v, owner, name, "ppm_count_pruning_ratios", PruningEntry):
        v.flt(entry, "pruning_ratio")
        v.flt(entry, "ppm_nn_accuracy")
        _class_accuracies(v, entry, "ppm")


def unification_performance_map(v: Visitor, owner: Any) -> None:
    """Accuracy against unification threshold."""
    name = "unification_performance_map"
    for entry in _entries(v, owner, name, "upm_count_thresholds", UnificationEntry):
        reshaped = len(entry.reshaped_tensor_dimension)
        count = v.count("count_reshaped_tensor_dimension", "ue", 1, reshaped, -1)
        v.limit("max_dimensions", count)
        v.values(entry, "reshaped_tensor_dimension", count, "ue", 7)
        v.align()
        for block in ("super_block_dimension", "block_dimension"):
            count = v.count(f"count_{block}", "u", 8, len(getattr(entry, block)), -1)
            v.values(entry, block, count, "u", 8)
        v.flt(entry, "unification_threshold")
        v.flt(entry, "upm_nn_accuracy")
        _class_accuracies(v, entry, "upm")


def decomposition_performance_map(v: Visitor, owner: Any) -> None:
    """Accuracy against the error of the decomposition."""
    name = "decomposition_performance_map"
    for entry in _entries(v, owner, name, "dpm_count_thresholds", DecompositionEntry):
        v.flt(entry, "mse_threshold")
        v.flt(entry, "dpm_nn_accuracy")
        v.flt(entry, "nn_reduction_ratio")
        count = v.count("dpm_count_classes", "u", 16, len(entry.dpm_nn_class_accuracy))
        v.values(entry, "dpm_nn_class_accuracy", count, "flt", 32)


_PERFORMANCE_MAPS = (
    sparsification_performance_map,
    pruning_performance_map,
    unification_performance_map,
    decomposition_performance_map,
)


# ---- Topology and quantization data -------------------------------------------------------


def topology_unit(v: Visitor, topology: Topology, context: Context) -> None:
    """NNR_TPL ("Parameter sets and topology").

    The data of UNREC, PYT and TEF is text, if raw. That of NNEF and ONNX, which the format does
    not delimit and which may hold zero bytes, and deflated data are the bytes up to the unit's end.
    """
    v.choice(topology, "topology_storage_format", 8, TopologyFormat)
    v.choice(topology, "topology_compression_format", 8, CompressionFormat)
    storage = topology.topology_storage_format
    raw = topology.topology_compression_format == CompressionFormat.RAW
    if storage == TopologyFormat.PRUN:
        v.unsupported("topology_storage_format", storage, "pruning topologies are not supported")
    if storage == TopologyFormat.REFLIST:
        if not raw:
            v.unsupported("topology_compression_format", 1, "a compressed list of references")
        topology_elements_ids_list(v, topology, indexed=False)
    elif raw and storage not in (TopologyFormat.NNEF, TopologyFormat.ONNX):
        v.st(topology, "topology_data", "max_topology_bytes")
    else:
        v.field(topology, "topology_data", "rest", "max_topology_bytes")


def quantization_unit(v: Visitor, data: QuantizationData, context: Context) -> None:
    """NNR_QNT ("Parameter sets and topology"); its data has the limit of topology data."""
    v.u(data, "quantization_storage_format", 8)
    v.choice(data, "quantization_compression_format", 8, CompressionFormat)
    raw = data.quantization_compression_format == CompressionFormat.RAW
    v.field(data, "quantization_data", "st" if raw else "rest", "max_topology_bytes")


def topology_elements_ids_list(v: Visitor, owner: Any, indexed: bool) -> None:
    """Two or more names, or indices ("Compressed data unit")."""
    name = "indices" if indexed else "names"
    count = v.count("count_topology_elements_minus2", "ue", 7, len(getattr(owner, name)), 2)
    # Every element is a unit's, so there cannot be more of them.
    v.limit("max_units", count)
    v.fits("count_topology_elements_minus2", count, 8)
    if indexed:
        v.values(owner, name, count, "ue", 7, "topology_elem_id_index_list")
        v.align()
    else:
        v.align()
        v.values(owner, name, count, "st", "max_name_bytes", "topology_elem_id_list")
