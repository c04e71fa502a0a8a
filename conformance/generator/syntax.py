"""The syntax of spec/bitstream.md, 2 to 5 and 13: each structure once, for both directions.

The functions have the order and the names of the document's tables. Each takes a coder of `bits.py`
and a record, which a writer reads and a reader fills. Payloads are bytes here: `coded_tensor.py`
makes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .bits import Coder, EndOfUnit, Record, SyntaxReader, SyntaxWriter

NNR_STR, NNR_MPS, NNR_LPS, NNR_TPL, NNR_QNT, NNR_NDU, NNR_AGG = range(7)
INT, FLOAT, RAW_FLOAT, BLOCK = range(4)
DC, LS, BN, BI = 1, 2, 4, 8
UNREC, NNEF, ONNX, PYT, TEF, PRUN, REFLIST = range(7)
MAPS = ("sparsification", "pruning", "unification")


def unit(unit_type: int, content: bytes, **header: int) -> bytes:
    """A unit; `header` may set its elements, `nnr_unit_size` to something wrong too."""
    coder = SyntaxWriter()
    long = header.get("nnr_unit_size_flag", int(len(content) + 4 >= 1 << 15))
    size = (5 if long else 3) + len(content) + header.get("partial_data_counter_present_flag", 0)
    defaults = {"nnr_unit_size": size, "independently_decodable_flag": 1}
    unit_header(coder, {"nnr_unit_type": unit_type, **defaults, **header, "flag": long})
    return coder.bytes() + content


def unit_of(
    unit_type: int, record: Record, *arguments: Any, payload: bytes = b"", **header: int
) -> bytes:
    """A unit of a record's elements, and a payload behind them; `arguments` of its structure."""
    coder = SyntaxWriter()
    STRUCTURES[unit_type](coder, record, *arguments)
    return unit(unit_type, coder.bytes() + payload, **header)


def unit_header(c: Coder, r: Record) -> None:
    """Section 2. "flag" stands in for nnr_unit_size_flag where that follows from the size."""
    long = c.u(r, "nnr_unit_size_flag", 1, r.get("flag", 0))
    c.u(r, "nnr_unit_size", 31 if long else 15)
    c.u(r, "nnr_unit_type", 6)
    c.u(r, "independently_decodable_flag", 1)
    if c.u(r, "partial_data_counter_present_flag", 1):
        c.u(r, "partial_data_counter", 8)


def start_unit(c: Coder, r: Record) -> None:
    """Section 3."""
    c.u(r, "general_profile_idc", 8)


def model_parameter_set(c: Coder, r: Record, profile: int) -> None:
    """Section 4.1. A performance map is present if its flag is 1; its entries are a list."""
    c.u(r, "topology_carriage_flag", 1)
    maps = [c.u(r, f"mps_{kind}_flag", 1) for kind in MAPS]
    decomposition = c.u(r, "mps_decomposition_performance_map_flag", 1)
    methods = c.u(r, "mps_quantization_method_flags", 3)
    c.u(r, "mps_topology_indexed_reference_flag", 1)
    validation = 0
    if profile == 1:
        validation = second_edition(c, r)
    else:
        c.u(r, "reserved", 7)
    end_of_parameter_set(c, r, "mps", methods, maps)
    if decomposition:
        decomposition_performance_map(c, r)
    if validation:
        c.flt(r, "validation_set_performance")
    c.align(r)


def second_edition(c: Coder, r: Record) -> int:
    """What profile 1 has in the MPS; returns validation_set_performance_present_flag."""
    base_model = c.u(r, "base_model_id_present_flag", 1)
    validation = c.u(r, "validation_set_performance_present_flag", 1)
    metric = c.u(r, "metric_type_performance_map_valid_flag", 1)
    if c.u(r, "mps_parent_signalling_enabled_flag", 1):
        c.u(r, "nnr_pre_flag", 1)
    else:
        c.u(r, "reserved", 1)
    c.u(r, "reserved_2", 2)
    if base_model:
        c.st(r, "base_model_id")
    if validation or metric:
        c.st(r, "performance_metric_type")
    return validation


def layer_parameter_set(c: Coder, r: Record) -> None:
    """Section 4.3."""
    c.u(r, "lps_self_contained_flag", 1)
    c.u(r, "reserved", 8)
    maps = [c.u(r, f"lps_{kind}_flag", 1) for kind in MAPS]
    methods = c.u(r, "lps_quantization_method_flags", 3)
    c.u(r, "reserved_2", 1)
    end_of_parameter_set(c, r, "lps", methods, maps)
    c.align(r)


def end_of_parameter_set(
    c: Coder, r: Record, prefix: str, methods: int, maps: Sequence[int]
) -> None:
    """What the flags of a parameter set announce: its quantization, and the maps of section 4.2.

    The map of decomposition, which an LPS lacks, is not among them.
    """
    if methods & 3:
        c.u(r, f"{prefix}_qp_density", 3)
        c.i(r, f"{prefix}_quantization_parameter", 13)
    sparsification, pruning, unification = maps
    if sparsification:
        numbers = ("sparsification_threshold", "non_zero_ratio", "spm_nn_accuracy")
        accuracy_map(c, r, "sparsification_performance_map", numbers, "spm")
    if pruning:
        accuracy_map(c, r, "pruning_performance_map", ("pruning_ratio", "ppm_nn_accuracy"), "ppm")
    if unification:
        for entry in map_entries(c, r, "unification_performance_map", "upm_count"):
            unification_entry(c, entry)


def map_entries(c: Coder, r: Record, name: str, element: str) -> Iterator[Record]:
    """The entries of a map, behind their number and one."""
    count = c.u(r, element, 8, len(r.get(name, ())) + 1)
    return c.listed(r, name, count - 1)


def accuracy_map(c: Coder, r: Record, name: str, numbers: tuple[str, ...], prefix: str) -> None:
    """A map whose entries are numbers, and the accuracies of classes."""
    for entry in map_entries(c, r, name, f"{prefix}_count"):
        for number in numbers:
            c.flt(entry, number)
        class_accuracies(c, entry, prefix)


def class_accuracies(c: Coder, r: Record, prefix: str) -> None:
    """Their number comes before the bitmask, they come behind it."""
    count = c.u(r, f"{prefix}_count_classes", 8)
    c.ue(r, f"{prefix}_class_bitmask", 7)
    for _ in range(count):
        c.flt(r, f"{prefix}_nn_class_accuracy")


def unification_entry(c: Coder, r: Record) -> None:
    """Lists of dimensions have one entry fewer than their counts."""
    for _ in range(c.ue(r, "count_reshaped_tensor_dimension", 1, 1) - 1):
        c.ue(r, "reshaped_tensor_dimension", 7)
    c.align(r)
    for name in ("super_block_dimension", "block_dimension"):
        for _ in range(c.u(r, f"count_{name}", 8, 1) - 1):
            c.u(r, name, 8)
    c.flt(r, "unification_threshold")
    c.flt(r, "upm_nn_accuracy")
    class_accuracies(c, r, "upm")


def decomposition_performance_map(c: Coder, r: Record) -> None:
    """Section 4.2."""
    for entry in map_entries(c, r, "decomposition_performance_map", "dpm_count_thresholds"):
        for number in ("mse_threshold", "dpm_nn_accuracy", "nn_reduction_ratio"):
            c.flt(entry, number)
        for _ in range(c.u(entry, "dpm_count_classes", 16)):
            c.flt(entry, "dpm_nn_class_accuracy")


def topology_unit(c: Coder, r: Record) -> None:
    """Section 4.4."""
    storage = c.u(r, "topology_storage_format", 8)
    compression = c.u(r, "topology_compression_format", 8)
    if storage == REFLIST:
        topology_elements_ids_list(c, r, 0)
    elif compression == 0 and storage not in (NNEF, ONNX):
        c.st(r, "topology_data")
    else:
        c.data(r, "topology_data")


def quantization_unit(c: Coder, r: Record) -> None:
    """Section 4.5."""
    c.u(r, "quantization_storage_format", 8)
    if c.u(r, "quantization_compression_format", 8):
        c.data(r, "quantization_data")
    else:
        c.st(r, "quantization_data")


def topology_elements_ids_list(c: Coder, r: Record, indexed: int) -> None:
    """Section 5.1. The entries of the list "names" are records of one name or index each."""
    count = c.ue(r, "count_topology_elements_minus2", 7, max(len(r.get("names", ())) - 2, 0))
    if not indexed:
        c.align(r, "align_of_names")
    for entry in c.listed(r, "names", count + 2):
        topology_element(c, entry, indexed)
    if indexed:
        c.align(r, "align_of_names")


def named(*names: str | bytes) -> list[Record]:
    """Entries of the list "names"."""
    return [{"topology_elem_id": name} for name in names]


def topology_element(c: Coder, r: Record, indexed: int) -> None:
    """A name, or its index in the latest reference list."""
    if indexed:
        c.ue(r, "topology_elem_id_index", 7)
    else:
        c.st(r, "topology_elem_id")


def data_unit_header(c: Coder, r: Record, profile: int, mps: Record) -> None:
    """Section 5. "names" is a list of records, "codebook" and "codebook_h" are records."""
    payload = c.u(r, "nnr_compressed_data_unit_payload_type", 5)
    several = c.u(r, "nnr_multiple_topology_elements_present_flag", 1, int(payload == BLOCK))
    has_format = c.u(r, "nnr_decompressed_data_format_present_flag", 1)
    parameters = c.u(r, "input_parameters_present_flag", 1, 1)
    indexed = mps.get("mps_topology_indexed_reference_flag", 0)
    if several:
        topology_elements_ids_list(c, r, indexed)
    else:
        topology_element(c, r.setdefault("names", [{}])[0], indexed)
    name_indexed(r, mps)
    if profile == 1:
        node_ids(c, r, mps.get("mps_parent_signalling_enabled_flag", 0))
    books = payload in (FLOAT, BLOCK) and c.u(r, "codebook_present_flag", 1)
    if books:
        codebook(c, r.setdefault("codebook", {}))
    if payload != RAW_FLOAT:
        c.u(r, "dq_flag", 1)
    if has_format:
        c.u(r, "nnr_decompressed_data_format", 7)
    types = input_parameters(c, r) if parameters else 0
    if not (parameters and r.get("tensor_dimensions_flag", 1)):
        r["tensor_dimensions"] = []  # they are not in the unit
    if payload == BLOCK and types & DC and books:
        codebook(c, r.setdefault("codebook_h", {}))
    if len(r.get("tensor_dimensions", ())) > 1:
        if profile == 1:
            c.ue(r, "first_tensor_dimension_shift", 1)
        if c.u(r, "scan_order", 4):
            cabac_entry_point_list(c, r)
    c.align(r)


def name_indexed(r: Record, mps: Record) -> None:
    """Give indexed names as texts too, of the list in force: shapes depend on them."""
    listed = mps.get("reference_list", ())
    for entry in r["names"]:
        if entry.get("topology_elem_id_index", len(listed)) < len(listed):
            entry["topology_elem_id"] = listed[entry["topology_elem_id_index"]]


def node_ids(c: Coder, r: Record, parent_signalling: int) -> None:
    """What profile 1 says of the tensor and its parent."""
    node = c.u(r, "node_id_present_flag", 1)
    if node:
        c.ue(r, "device_id", 1)
        c.ue(r, "parameter_id", 5)
        c.ue(r, "put_node_depth", 4)
    if not (parent_signalling and c.u(r, "parent_node_id_present_flag", 1)):
        return
    kind = c.u(r, "parent_node_id_type", 2)
    c.u(r, "temporal_context_modeling_flag", 1)
    if kind == 0:
        c.ue(r, "parent_device_id", 1)
        if not node:
            c.ue(r, "parameter_id", 5)
            c.ue(r, "put_node_depth", 4)
    elif kind == 1:
        c.u(r, "parent_node_payload_sha256", 256)
    elif kind == 2:
        c.u(r, "parent_node_payload_sha512", 512)


def input_parameters(c: Coder, r: Record) -> int:
    """Dimensions and what belongs to them; returns compressed_parameter_types."""
    dimensions = c.u(r, "tensor_dimensions_flag", 1, 1)
    unary = c.u(r, "cabac_unary_length_flag", 1, int("cabac_unary_length_minus1" in r))
    types = c.u(r, "compressed_parameter_types", 4)
    if types & DC:
        c.ue(r, "decomposition_rank", 3)
        c.ue(r, "g_number_of_rows", 3)
    if dimensions:
        count = c.ue(r, "count_tensor_dimensions", 1, len(r.get("tensor_dimensions", ())))
        sizes = r.get("tensor_dimensions", [None] * count)
        codes = [c.ue({"tensor_dimensions": n}, "tensor_dimensions", 7) for n in sizes]
        r["tensor_dimensions"] = codes
    if unary:
        c.u(r, "cabac_unary_length_minus1", 8)
    return types


def codebook(c: Coder, r: Record) -> None:
    """Section 5.2; "values" in ascending order."""
    egk = c.u(r, "codebook_egk", 4)
    size = c.ue(r, "codebook_size", 2, len(r.get("values", ())))
    middle = size >> 1
    r["zero_offset_coded"] = r.get("zero_offset", 0) - middle
    zero = r["zero_offset"] = c.ie(r, "zero_offset_coded", 2) + middle
    values = r.setdefault("values", [0] * max(size, 0))
    r["value_at_zero"] = values[zero] if c.writing else 0
    values[zero] = c.ie(r, "value_at_zero", 7)
    below = [(i, i + 1, -1) for i in range(zero - 1, -1, -1)]
    for i, neighbour, sign in below + [(i, i - 1, 1) for i in range(zero + 1, size)]:
        r["difference"] = sign * (values[i] - values[neighbour]) - 1
        values[i] = values[neighbour] + sign * (c.ue(r, "difference", egk) + 1)


def cabac_entry_point_list(c: Coder, r: Record) -> None:
    """Section 13. A writer takes as many entries as the record has."""
    previous = None
    for entry in c.listed(r, "entry_points", 0 if c.writing else entry_point_count(r)):
        c.u(entry, "value8", 8)
        if r.get("dq_flag"):
            c.u(entry, "dq_state", 3)
        if previous is None:
            previous = c.ue(entry, "offset", 11)
        else:
            entry.setdefault("offset_difference", entry.get("offset", 0) - previous)
            previous += c.ie(entry, "offset_difference", 7)


def weight_shapes(r: Record) -> list[tuple[int, ...]]:
    """The shape of a unit's weight, or those of its factors (section 6)."""
    dimensions = tuple(r["tensor_dimensions"])
    if not r.get("compressed_parameter_types", 0) & DC:
        return [dimensions]
    g_rows, rank = r["g_number_of_rows"], r["decomposition_rank"]
    shapes = [(g_rows, rank), (rank, math.prod(dimensions) // g_rows)]
    if r["nnr_compressed_data_unit_payload_type"] == BLOCK:
        return shapes
    ending = str(r["names"][0].get("topology_elem_id", ""))[-2:]
    return [shapes[["_G", "_H"].index(ending)]] if ending in ("_G", "_H") else [dimensions]


def entry_point_count(r: Record) -> int:
    """Section 13: one for each block row but the first."""
    side = 4 << r["scan_order"]
    return sum((shape[0] + side - 1) // side - 1 for shape in weight_shapes(r))


STRUCTURES: dict[int, Callable[..., None]] = {
    NNR_STR: start_unit,
    NNR_MPS: model_parameter_set,
    NNR_LPS: layer_parameter_set,
    NNR_TPL: topology_unit,
    NNR_QNT: quantization_unit,
    NNR_NDU: data_unit_header,
}


def read_units(data: bytes, seen: Callable[[str, Any], None]) -> None:
    """Read the units of a valid stream, but no payloads; tell `seen` of each element.

    Raises:
        EndOfUnit: an element reaches past its unit.
    """
    position, profile, mps = 0, 0, Record()
    while position < len(data):
        header = Record()
        c = SyntaxReader(data, position, len(data), seen)
        unit_header(c, header)
        c.end = 8 * (position + header["nnr_unit_size"])
        if header["nnr_unit_size"] < 3 or c.end > 8 * len(data):
            raise EndOfUnit("the size of a unit is wrong")
        record, kind = Record(), header["nnr_unit_type"]
        if kind in STRUCTURES:
            arguments = {NNR_MPS: (profile,), NNR_NDU: (profile, mps)}.get(kind, ())
            STRUCTURES[kind](c, record, *arguments)
        profile = record.get("general_profile_idc", profile)
        mps = record if kind == NNR_MPS else mps
        if record.get("topology_storage_format") == REFLIST:
            mps["reference_list"] = [entry["topology_elem_id"] for entry in record["names"]]
        position = c.end >> 3
