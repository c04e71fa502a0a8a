"""The syntax of the compressed data unit, declared once; see :mod:`.syntax` for the others.

The order is that of spec/bitstream.md, "Compressed data unit" and "Scan orders and entry points".
"""

from __future__ import annotations

from .codes import DataFormat, ParentType, PayloadType
from .context import Context
from .records import Codebook, DataUnit, EntryPoint, NodeId, Parent
from .syntax import topology_elements_ids_list
from .visitors import Visitor

MAX_CODEBOOK_SIZE = 2**20
"""Our own limit: a codebook of one-bit codes would take 300 times its bytes as Python numbers."""

MAX_ENTRY_POINTS = 2**22
"""Our own limit: entry points of one unit, at most 48 times their bytes as Python objects."""


def data_unit(v: Visitor, unit: DataUnit, context: Context) -> None:
    """The header of an NNR_NDU up to its payload ("Compressed data unit")."""
    v.choice(unit, "payload_type", 5, PayloadType, "nnr_compressed_data_unit_payload_type")
    flag = "nnr_multiple_topology_elements_present_flag"
    several = v.present(flag, unit.is_block)
    reason = "several elements are for BLOCK, and for BLOCK alone"
    v.check(several == unit.is_block, flag, int(several), reason)
    has_format = v.present(
        "nnr_decompressed_data_format_present_flag", unit.nnr_decompressed_data_format is not None
    )
    v.u(unit, "input_parameters_present_flag", 1)
    _identifiers(v, unit, context, several)
    _ancestry(v, unit, context)
    has_codebook = False
    if unit.payload_type in (PayloadType.FLOAT, PayloadType.BLOCK):
        has_codebook = v.present("codebook_present_flag", bool(unit.codebooks))
    if has_codebook:
        codebook(v, v.element(unit.codebooks, 0, Codebook))
    if unit.payload_type != PayloadType.RAW_FLOAT:
        v.u(unit, "dq_flag", 1)
    if has_format:
        v.choice(unit, "nnr_decompressed_data_format", 7, DataFormat)
    if unit.input_parameters_present_flag:
        _input_parameters(v, unit)
    if has_codebook and unit.is_decomposed_block:
        codebook(v, v.element(unit.codebooks, 1, Codebook))
    if len(unit.tensor_dimensions or ()) > 1:
        _scan(v, unit, context)
    _check_complete(v, unit, context, has_codebook)
    v.align()


def _identifiers(v: Visitor, unit: DataUnit, context: Context, several: bool) -> None:
    if several:
        topology_elements_ids_list(v, unit, context.indexed)
    elif context.indexed:
        v.values(unit, "indices", 1, "ue", 7, "topology_elem_id_index")
    else:
        v.values(unit, "names", 1, "st", "max_name_bytes", "topology_elem_id")
    if context.indexed:
        # The name of a factor tells its shape. An index that is in no list is the parser's matter.
        listed = context.reference_list
        unit.names = [listed[index] for index in unit.indices if index < len(listed)] or unit.names


def _ancestry(v: Visitor, unit: DataUnit, context: Context) -> None:
    """Node and parent ids, in profile 1."""
    if context.profile == 1 and v.present("node_id_present_flag", unit.node_id is not None):
        node = v.child(unit, "node_id", NodeId)
        v.ue(node, "device_id", 1)
        _node_position(v, node)
    has_parent = unit.parent is not None
    if context.parent_signalling and v.present("parent_node_id_present_flag", has_parent):
        parent = v.child(unit, "parent", Parent)
        v.choice(parent, "parent_node_id_type", 2, ParentType)
        v.u(parent, "temporal_context_modeling_flag", 1)
        if parent.parent_node_id_type == ParentType.ICNN_NDU_ID:
            v.ue(parent, "parent_device_id", 1)
            if unit.node_id is None:
                _node_position(v, parent)
        elif parent.parent_node_id_type == ParentType.PAYLOAD_SHA256:
            v.field(parent, "digest", "octets", 256, "parent_node_payload_sha256")
        else:
            v.field(parent, "digest", "octets", 512, "parent_node_payload_sha512")


def _node_position(v: Visitor, node: NodeId | Parent) -> None:
    v.ue(node, "parameter_id", 5)
    v.ue(node, "put_node_depth", 4)


def codebook(v: Visitor, book: Codebook) -> None:
    """A codebook, from the value at zero_offset outwards ("Compressed data unit")."""
    v.u(book, "codebook_egk", 4)
    size = v.count("codebook_size", "ue", 2, len(book.values))
    v.check(size >= 1, "codebook_size", size, "a codebook has at least one value")
    v.fits("codebook_size", size, 1)
    v.limit("max_codebook_size", size, MAX_CODEBOOK_SIZE)
    half = size >> 1
    zero = half + v.code("codebook_centre_offset", "ie", 2, book.zero_offset - half)
    v.check(0 <= zero < size, "zero_offset", zero, f"outside a codebook of {size}")
    # A reader has a list of one value here: what it computes replaces placeholders. A writer
    # computes the values that are there.
    known = book.values if len(book.values) == size else [0] * size
    values = list(known)
    values[zero] = v.code("codebook_zero_value", "ie", 7, known[zero])
    for j in range(zero - 1, -1, -1):
        gap = known[j + 1] - known[j] - 1
        values[j] = values[j + 1] - v.code("codebook_delta_left", "ue", book.codebook_egk, gap) - 1
    for j in range(zero + 1, size):
        gap = known[j] - known[j - 1] - 1
        values[j] = values[j - 1] + v.code("codebook_delta_right", "ue", book.codebook_egk, gap) + 1
    inside = values[0] >= -(2**31) and values[-1] < 2**31
    v.check(inside, "codebook", (values[0], values[-1]), "values beyond 32 bits")
    book.zero_offset, book.values = zero, values


def _input_parameters(v: Visitor, unit: DataUnit) -> None:
    """Shape, binarization and contents."""
    has_dimensions = v.present("tensor_dimensions_flag", unit.tensor_dimensions is not None)
    has_unary = v.present("cabac_unary_length_flag", unit.cabac_unary_length_minus1 is not None)
    v.u(unit, "compressed_parameter_types", 4)
    if unit.is_decomposed:
        v.ue(unit, "decomposition_rank", 3)
        v.ue(unit, "g_number_of_rows", 3)
    if has_dimensions:
        length = len(unit.tensor_dimensions or ())
        count = v.count("count_tensor_dimensions", "ue", 1, length)
        v.limit("max_dimensions", count)
        v.values(unit, "tensor_dimensions", count, "ue", 7)
    if has_unary:
        v.u(unit, "cabac_unary_length_minus1", 8)
    _check_shape(v, unit)


def _check_shape(v: Visitor, unit: DataUnit) -> None:
    """Refuse shapes that are empty, too large, or contradict the decomposition."""
    dimensions = unit.tensor_dimensions or []
    v.check(0 not in dimensions, "tensor_dimensions", dimensions, "a dimension is 0")
    v.limit("max_elements_per_tensor", unit.element_count)
    if not unit.is_decomposed:
        return
    rank, rows = unit.decomposition_rank, unit.g_number_of_rows
    v.check(rank >= 1, "decomposition_rank", rank, "must be at least 1")
    v.check(rows >= 1, "g_number_of_rows", rows, "must be at least 1")
    v.limit("max_elements_per_tensor", rows * rank)
    if (unit.is_block or unit.is_separate_factor) and dimensions:
        elements = unit.element_count
        v.check(elements % rows == 0, "g_number_of_rows", rows, f"must divide {elements} elements")
        v.limit("max_elements_per_tensor", rank * (elements // rows))


def _scan(v: Visitor, unit: DataUnit, context: Context) -> None:
    """Scan order and entry points of a tensor of two or more dimensions."""
    if context.profile == 1:
        shift = "first_tensor_dimension_shift"
        v.ue(unit, shift, 1)
        if unit.first_tensor_dimension_shift:
            v.unsupported(shift, unit.first_tensor_dimension_shift, "shifted dimensions")
    v.u(unit, "scan_order", 4)
    v.check(unit.scan_order <= 4, "scan_order", unit.scan_order, "reserved value")
    scanned = unit.scan_order == 0 or unit.payload_type != PayloadType.RAW_FLOAT
    v.check(scanned, "scan_order", unit.scan_order, "raw floats have no scan")
    if unit.scan_order > 0:
        cabac_entry_point_list(v, unit)


def entry_point_count(unit: DataUnit) -> int:
    """Number of entries in the unit's cabac_entry_point_list, never negative.

    Our reading of "Scan orders and entry points": the list is syntax, so its length follows from
    the syntax elements alone, scan_order and rows. It is 0 only for scan_order 0 or less than two
    dimensions. That a matrix of one row or one column is decoded row by row whatever scan_order
    says does not shorten the list: with one row the formula gives 0 anyway; with one column (also
    a G of rank 1) the entries are there and say nothing, as there are no block rows. Every matrix
    has at least one row, hence one block row at least, and each term below is ≥ 0.
    """
    order = unit.scan_order
    if order == 0 or len(unit.tensor_dimensions or ()) < 2:
        return 0
    side = 4 << order
    return sum((shape[0] + side - 1) // side - 1 for shape in unit.weight_shapes())


def cabac_entry_point_list(v: Visitor, unit: DataUnit) -> None:
    """Where each block row but the first starts ("Scan orders and entry points")."""
    count = entry_point_count(unit)
    v.limit("max_entry_points", count, MAX_ENTRY_POINTS)
    v.fits("cabac_entry_point_list", count, 16)
    previous = None
    for entry in v.each(unit, "entry_points", count, EntryPoint):
        v.u(entry, "value8", 8)
        if unit.dq_flag:
            v.u(entry, "dq_state", 3)
        if previous is None:
            v.ue(entry, "offset", 11)
        else:
            entry.offset = previous + v.code("offset_delta", "ie", 7, entry.offset - previous)
        v.check(entry.offset >= 0, "offset", entry.offset, "an entry point before the last one")
        previous = entry.offset


def _check_complete(v: Visitor, unit: DataUnit, context: Context, has_codebook: bool) -> None:
    """Number of names; and, for writers, that nothing set was left out of the syntax."""
    names = unit.indices if context.indexed else unit.names
    expected = len(unit.name_roles())
    reason = f"must be {expected} by the block's contents"
    v.check(len(names) == expected, "names", len(names), reason)
    books = (2 if unit.is_decomposed_block else 1) if has_codebook else 0
    v.check(len(unit.codebooks) == books, "codebooks", len(unit.codebooks), f"must be {books}")
    node_fits = unit.node_id is None or context.profile == 1
    v.check(node_fits, "node_id", unit.node_id, "needs profile 1")
    parent_fits = unit.parent is None or context.parent_signalling
    v.check(parent_fits, "parent", unit.parent, "needs mps_parent_signalling_enabled_flag")
    points, count = entry_point_count(unit), len(unit.entry_points)
    v.check(count == points, "entry_points", count, f"must be {points}")
    scanned = unit.scan_order == 0 or len(unit.tensor_dimensions or ()) > 1
    v.check(scanned, "scan_order", unit.scan_order, "needs two dimensions")
    inputs = unit.tensor_dimensions is None and unit.cabac_unary_length_minus1 is None
    given = bool(unit.input_parameters_present_flag) or (inputs and not unit.is_decomposed)
    v.check(given, "input_parameters_present_flag", 0, "dimensions or unary length are set")
