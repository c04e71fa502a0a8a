"""Cases made by hand that every decoder must refuse: a statement of the document broken in each."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

from ..suite.cases import CaseFiles
from .building import (
    MPS,
    SIGNALLING,
    DataUnit,
    block,
    floats,
    integers,
    layer_parameters,
    parameters,
    ramp,
    start,
    stream,
    topology,
)
from .feature_cases import Draft, layer, update_series
from .syntax import DC, NNR_AGG, NNR_MPS, NNR_NDU, NNR_QNT, NNR_STR, REFLIST, unit

Mistake = tuple[str, bytes, str, str]
"""Name, stream, what is wrong, kind of error."""


POINTS = {
    "codeword_start*": "E3",
    "codebook_index_*": "E4",
    "index_*": "E8",
    "n*_dimensions": "E10",
    "no_input_parameters": "E10",
    "zero_dimensions": "E10",
    "*data_format_10": "E11",
    "*_as_*": "E11",
    "int[0-9]*_*": "E11",
    "aggregate": "E12",
    "partial_data": "E12",
    "topology_prun": "E12",
    "map_*": "E13",
    "no_quantization_parameter": "E14",
    "*_reserved*": "E15",
    "entry_*": "E33",
    "name_twice": "E35",
    "name_of_product": "E35",
    "*align": "E39",
    "*stop_bit*": "E39",
    "mps_reserved*": "E39",
    "profile_2": "E39",
    "topology_format_7": "E39",
    "codebook_above_32_bits": "E39",
    "step_*": "E39",
    "dimension_*": "E39",
    "rank_0": "E39",
}
"""Points of spec/errata.md by globs of names."""


def invalid_cases() -> Iterator[Draft]:
    """All of the category "invalid"."""
    groups = {
        "2": units,
        "4": parameter_sets,
        "4.4": topologies,
        "5": headers,
        "5.1": names,
        "5.2": codebooks,
        "6": payloads,
        "13": entry_points,
        "7": codewords,
    }
    for section, group in groups.items():
        for name, data, wrong, error in group():
            errata = tuple(p for glob, p in POINTS.items() if fnmatch.fnmatchcase(name, glob))
            yield f"invalid/{name}", CaseFiles(data, wrong, section, error=error, errata=errata)
    for name, files in updates():
        yield f"invalid/{name}", files


def plain(**header: Any) -> DataUnit:
    """A FLOAT unit with nothing wrong yet."""
    return floats(ramp(60, 9), (12, 5), **header)


def units() -> Iterator[Mistake]:
    """Framing and order."""
    good = stream(plain())
    yield "empty", b"", "no unit at all", "truncated"
    yield "ends_in_unit_size", start() + b"\0", "the data end inside a unit's size", "truncated"
    yield "ends_in_unit", good[:-1], "the data end before the last unit does", "truncated"
    yield "size_below_header", start() + b"\0\2\6\1", "nnr_unit_size 2", "invalid"
    yield "size_zero", start() + b"\0\0\6\1", "nnr_unit_size 0", "invalid"
    yield "no_start_unit", parameters() + plain().bytes(), "the first unit is no NNR_STR", "invalid"
    yield "two_start_units", start() + good, "a second NNR_STR", "invalid"
    yield "two_parameter_sets", stream(parameters(), plain()), "a second NNR_MPS", "invalid"
    yield "no_parameter_set", start() + plain().bytes(), "an NNR_NDU before the NNR_MPS", "invalid"
    lps = start() + layer_parameters() + parameters() + plain().bytes()
    yield "layer_parameters_first", lps, "an NNR_LPS before the NNR_MPS", "invalid"
    for number in (7, 31):
        data = stream(unit(number, b""), plain())
        yield f"unit_type_{number}", data, f"the reserved nnr_unit_type {number}", "invalid"
    yield "aggregate", stream(unit(NNR_AGG, b"")), "an NNR_AGG, outside the document", "unsupported"
    split = plain()
    split.unit_header = {"partial_data_counter_present_flag": 1}
    yield "partial_data", stream(split), "a data unit in parts, outside the document", "unsupported"
    longer = unit(NNR_STR, b"\0\0") + parameters() + plain().bytes()
    yield "start_too_long", longer, "a byte behind the content of NNR_STR", "invalid"
    longer = start() + unit(NNR_MPS, parameters()[3:] + b"\0") + plain().bytes()
    yield "parameters_too_long", longer, "a byte behind the content of NNR_MPS", "invalid"
    yield (
        "start_too_short",
        unit(NNR_STR, b"") + good[4:],
        "an NNR_STR without content",
        "truncated",
    )


def parameter_sets() -> Iterator[Mistake]:
    """Profile, reserved bits, performance maps."""
    data = start(2) + parameters() + plain().bytes()
    yield "profile_2", data, "general_profile_idc 2", "unsupported"
    for profile, element in ((0, "reserved"), (1, "reserved"), (1, "reserved_2")):
        data = stream(plain(), profile=profile, mps={**MPS, element: 1})
        yield (
            f"mps_{element}_p{profile}",
            data,
            f"reserved bits of the MPS, profile {profile}",
            "invalid",
        )
    for element in ("reserved", "reserved_2"):
        data = stream(layer_parameters(**{element: 1}), plain())
        yield f"lps_{element}", data, "reserved bits of an LPS", "invalid"
    data = stream(plain(), mps={**MPS, "mps_quantization_method_flags": 4})
    yield "mps_method_4", data, "a reserved quantization method in the MPS", "invalid"
    data = stream(layer_parameters(lps_quantization_method_flags=4), plain())
    yield "lps_method_4", data, "a reserved quantization method in an LPS", "invalid"
    data = stream(plain(), mps={**MPS, "align": 0})
    yield "mps_align", data, "align of the MPS without its bit 1", "invalid"
    counts = {"sparsification": "spm_count", "pruning": "ppm_count", "unification": "upm_count"}
    counts["decomposition_performance_map"] = "dpm_count_thresholds"
    for kind, count in counts.items():
        data = stream(plain(), mps={**MPS, f"mps_{kind}_flag": 1, count: 0})
        yield f"map_{kind.split('_')[0]}_0", data, f"a {kind} map with the count 0", "invalid"
    bare = {"mps_quantization_method_flags": 0}
    data = stream(plain(), mps=bare)
    yield "no_quantization_parameter", data, "no parameter set has a qp for a FLOAT unit", "invalid"


def topologies() -> Iterator[Mistake]:
    """Topology and quantization data."""
    data = stream(topology(topology_storage_format=7), plain())
    yield "topology_format_7", data, "a reserved topology_storage_format", "invalid"
    data = stream(topology(topology_storage_format=5), plain())
    yield "topology_prun", data, "a pruning topology, outside the document", "unsupported"
    data = stream(topology(topology_compression_format=2), plain())
    yield "topology_compression_2", data, "a reserved topology_compression_format", "invalid"
    data = stream(topology(topology_data=b"abc"), plain())
    yield "topology_unended", data, "topology data without their zero byte", "truncated"
    data = stream(unit(NNR_QNT, b"\0\2\0"), plain())
    yield (
        "quantization_compression_2",
        data,
        "a reserved quantization_compression_format",
        "invalid",
    )
    listed = topology(
        topology_storage_format=REFLIST, names=[{}, {}], topology_compression_format=1
    )
    yield "list_deflated", stream(listed, plain()), "a deflated reference list", "unsupported"


def headers() -> Iterator[Mistake]:
    """Elements of the data unit's header."""

    def mistake(name: str, wrong: str, error: str = "invalid", **header: Any) -> Mistake:
        return name, stream(plain(**header)), wrong, error

    payload = "nnr_compressed_data_unit_payload_type"
    yield mistake("payload_type_4", "a reserved payload type", **{payload: 4})
    several = "nnr_multiple_topology_elements_present_flag"
    yield mistake("several_names_in_float", "several names in a FLOAT unit", **{several: 1})
    single = layer(8)
    single.header[several] = 0
    yield "one_name_in_block", stream(single), "a BLOCK with one name", "invalid"
    flag, element = "nnr_decompressed_data_format_present_flag", "nnr_decompressed_data_format"
    yield mistake("data_format_10", "a reserved data format", **{flag: 1, element: 10})
    text = "an integer format of a FLOAT unit"
    yield mistake("float_as_int8", text, "unsupported", **{flag: 1, element: 5})
    data = stream(integers([1], (1,), **{flag: 1, element: 1}))
    yield "integer_as_float32", data, "a float format of an INT unit", "unsupported"
    yield mistake("scan_order_5", "a reserved scan_order", scan_order=5)
    text = "a unit without input parameters"
    yield mistake("no_input_parameters", text, "unsupported", input_parameters_present_flag=0)
    yield mistake(
        "no_dimensions", "a unit without dimensions", "unsupported", tensor_dimensions_flag=0
    )
    yield mistake("zero_dimensions", "no dimension", "unsupported", tensor_dimensions=[])
    yield mistake("dimension_0", "a dimension of 0", tensor_dimensions=[12, 0])
    yield mistake("align", "align of a data unit without its bit 1", align=0)
    shifted = plain(first_tensor_dimension_shift=1)
    text = "first_tensor_dimension_shift 1"
    yield "dimension_shift", stream(shifted, profile=1), text, "unsupported"
    for name, rank, rows in (("rank_0", 0, 6), ("g_rows_0", 2, 0), ("g_rows_no_divisor", 2, 7)):
        made = layer(DC)
        made.header |= {"decomposition_rank": rank, "g_number_of_rows": rows}
        yield name, stream(made), f"a decomposition with rank {rank}, {rows} rows of G", "invalid"
    zeros = unit(NNR_NDU, b"\x09w\0" + b"\x20" + bytes(12))
    yield "long_exp_golomb", stream(zeros), "ue(k) with more zeros than 32 bits allow", "invalid"
    identified = plain(node_id_present_flag=1, device_id=1 << 33)
    text = "a device_id beyond 32 bits, which nothing else would tell"
    yield "exp_golomb_33_bits", stream(identified, profile=1), text, "invalid"
    signalled = plain(parent_node_id_present_flag=1, parent_node_id_type=3)
    data = stream(signalled, profile=1, mps=SIGNALLING)
    yield "parent_type_3", data, "a reserved parent_node_id_type", "invalid"


def names() -> Iterator[Mistake]:
    """Identifiers and indices."""
    yield "name_not_utf8", stream(floats([1], (1,), names=_named(b"\xff\0"))), "no UTF-8", "invalid"
    data = stream(floats([1], (1,), names=_named(b"w" * 50), tensor_dimensions_flag=0))
    yield (
        "name_unended",
        start() + parameters() + unit(NNR_NDU, b"\x09www"),
        "a name without end",
        "truncated",
    )
    assert data
    yield "name_twice", stream(plain(), plain()), "two units of one name", "invalid"
    data = stream(layer(DC), floats([1], (1,), "w"))
    yield "name_of_product", data, "a tensor with the name of a product", "invalid"
    twice = block(("w", "w"), (3, 2), 8, [[1, 0, 1], ramp(6)])
    yield "name_twice_in_block", stream(twice), "a name twice in a BLOCK", "invalid"
    fewer = layer(8 + 2)
    fewer.header["names"] = [{"topology_elem_id": name} for name in ("w", "b")]
    yield "names_too_few", stream(fewer), "fewer names than tensors in a BLOCK", "invalid"
    more = layer(8)
    more.header["names"] = [{"topology_elem_id": name} for name in ("w", "b", "c")]
    yield "names_too_many", stream(more), "more names than tensors in a BLOCK", "invalid"
    wrong = layer(DC)
    wrong.header["names"] = [{"topology_elem_id": name} for name in ("w_G", "v_H")]
    yield "names_of_factors", stream(wrong), "factors that are not called X_G and X_H", "invalid"
    aligned = layer(8, align_of_names=1)
    yield "names_align", stream(aligned), "align of a list of names without its bit 1", "invalid"
    mps = {**MPS, "mps_topology_indexed_reference_flag": 1}
    index = plain(names=[{"topology_elem_id_index": 2}])
    yield (
        "index_without_list",
        stream(index, mps=mps),
        "an index without a reference list",
        "invalid",
    )
    listed = topology(topology_storage_format=REFLIST, names=_named("a") + _named("b"))
    yield "index_outside", stream(listed, index, mps=mps), "an index outside of the list", "invalid"


def _named(name: str | bytes) -> list[dict[str, Any]]:
    return [{"topology_elem_id": name}]


def codebooks() -> Iterator[Mistake]:
    """Codebooks, and indices into them."""

    def mistake(
        name: str, wrong: str, book: dict[str, Any], v: int = 0, profile: int = 0
    ) -> Mistake:
        made = floats([v, 0], (2,), codebook_present_flag=1, codebook=book)
        return name, stream(made, profile=profile), wrong, "invalid"

    empty = {"codebook_size": 0, "values": [0], "zero_offset": 0}
    yield mistake("codebook_empty", "a codebook of no values", empty)
    outside = {"codebook_size": 3, "values": [0, 1, 2, 3, 4], "zero_offset": 4}
    yield mistake("codebook_zero_offset", "zero_offset outside of the codebook", outside)
    wide = {"values": [0, 1 << 31], "zero_offset": 0}
    yield mistake("codebook_above_32_bits", "a codebook value of 2^31", wide)
    wide = {"values": [-(1 << 31) - 1, 0], "zero_offset": 1}
    yield mistake("codebook_below_32_bits", "a codebook value of -2^31 - 1", wide)
    book = {"values": [-4, 0, 4], "zero_offset": 1}
    yield mistake("codebook_index_above", "an index above the codebook", book, 2)
    yield mistake("codebook_index_below", "an index below the codebook", book, -2)
    doubled = floats([1, 1, 1], (3,), codebook_present_flag=1, codebook=book, dq_flag=1)
    text = "an index that leaves the codebook by the doubling"
    yield "codebook_index_doubled", stream(doubled, profile=1), text, "invalid"
    suffix = {"values": list(range(12)), "zero_offset": 0}
    made = floats(
        [13, 0], (2,), codebook_present_flag=1, codebook=suffix, cabac_unary_length_minus1=0
    )
    text = "an index that leaves the codebook by the suffix of the remainder"
    yield "codebook_index_suffix", stream(made, profile=1), text, "invalid"


def payloads() -> Iterator[Mistake]:
    """Steps, data formats, raw floats."""
    for name, qp, what in (
        ("subnormal", -126 * 4 - 1, "is subnormal"),
        ("large", 128 * 4, "is 2^128"),
    ):
        data = stream(plain(), mps={**MPS, "mps_quantization_parameter": qp})
        yield f"step_{name}", data, f"a step that {what}", "invalid"
    flag, element = "nnr_decompressed_data_format_present_flag", "nnr_decompressed_data_format"
    for number, bits in ((2, 2), (3, 3), (4, 4), (5, 8), (6, 16)):
        for sign, v in (("above", 1 << (bits - 1)), ("below", -(1 << (bits - 1)) - 1)):
            data = stream(integers([0, v], (2,), **{flag: 1, element: number}))
            yield f"int{bits}_{sign}", data, f"{v} in a tensor of INT{bits}", "invalid"
    raw = {"nnr_compressed_data_unit_payload_type": 2}
    for name, size in (("short", 7), ("long", 9)):
        made = floats([0, 0], (2,), **raw)
        made.payload = bytes(size)
        yield (
            f"raw_float_{name}",
            stream(made),
            f"{size} bytes of two RAW_FLOAT elements",
            "invalid",
        )
    made = floats([0, 0], (2, 1), **raw, scan_order=1)
    made.payload = bytes(8)
    yield "raw_float_scan_order", stream(made), "scan_order 1 in a RAW_FLOAT unit", "invalid"


def entry_points() -> Iterator[Mistake]:
    """Entry points that say something else than the codeword."""
    v = ramp(20 * 9, 9)
    right = floats(v, (20, 9), scan_order=1, dq_flag=1)
    right.bytes()
    changes = (("value8", 1), ("dq_state", 1), ("offset", 1), ("offset", -1))
    good = _entries(v)
    for number in (0, 1):
        for element, change in changes:
            made = floats(v, (20, 9), scan_order=1, dq_flag=1)
            value = good[number][element] + change
            value %= {"value8": 256, "dq_state": 8}.get(element, 1 << 20)
            made.entries = {number: {element: value}}
            name = f"entry_{number}_{element}_{'plus' if change > 0 else 'minus'}"
            yield name, stream(made), f"{element} of entry point {number} is wrong", "invalid"
    made = floats(v, (20, 9), scan_order=1, dq_flag=1)
    made.entries = {1: {"offset": -5}}
    yield "entry_offset_negative", stream(made), "an offset below 0", "invalid"


def _entries(v: list[int]) -> list[dict[str, int]]:
    from .arithmetic_encoder import ArithmeticEncoder
    from .coded_tensor import TensorCoding, write_tensor

    encoder = ArithmeticEncoder()
    encoder.bypass(0, 8)
    coding = TensorCoding(20, 9, scan_order=1, dq_flag=1)
    write_tensor(encoder, coding, lambda _: 0, lambda position, _: v[position])
    return encoder.entry_points(encoder.finish())


def codewords() -> Iterator[Mistake]:
    """The arithmetic codeword, its start and its end."""

    def mistake(name: str, wrong: str, change: Any, error: str = "invalid") -> Mistake:
        made = plain()
        made.payload = change
        return name, stream(made), wrong, error

    text = "a first value beyond the range"
    yield mistake("codeword_start", text, lambda w: b"\xff\xff" + w[2:])
    book = {"values": [5], "zero_offset": 0}
    constant = floats([0, 0], (2,), codebook_present_flag=1, codebook=book)
    constant.payload = b"\xff\0\x80"
    text = "a first value beyond the range, which nothing else would tell"
    yield "codeword_start_alone", stream(constant, profile=1), text, "invalid"
    yield mistake("codeword_empty", "no codeword", b"", "truncated")
    yield mistake("codeword_one_byte", "a codeword of one byte", lambda w: w[:1], "truncated")
    yield mistake(
        "codeword_cut", "a codeword without its last bytes", lambda w: w[:-4], "truncated"
    )
    yield mistake("codeword_longer", "a byte behind the codeword", lambda w: w + b"\0")
    text = "no stop bit"
    yield mistake("stop_bit_missing", text, lambda w: w[:-1] + bytes([w[-1] & (w[-1] - 1)]))
    text = "a bit behind the stop bit"
    yield mistake("bits_behind_stop_bit", text, _with_bit_behind)
    ended = plain()
    ended.terminating_bin = 0
    yield "terminating_bin", stream(ended), "the terminating bin is 0", "invalid"


def _with_bit_behind(word: bytes) -> bytes:
    """Set the last bit; where it is the stop bit itself, put another into a byte of its own."""
    return word + b"\x80" if word[-1] & 1 else word[:-1] + bytes([word[-1] | 1])


def updates() -> Iterator[Draft]:
    """Parents that are missing, damaged or of another shape."""
    series = update_series(0, 1, 0)
    kinds: list[tuple[str, list[bytes], str, str]] = [
        ("parent_missing", [], "temporal contexts without a parent", "missing parent"),
        ("parent_another", series[1:2], "no parent holds the tensor", "missing parent"),
        ("parent_damaged", [series[0][:-1]], "the parent is damaged", "truncated"),
    ]
    for shape in ((8, 12), (11, 9)):
        other = floats(ramp(shape[0] * shape[1]), shape, node_id_present_flag=1, put_node_depth=1)
        first = stream(other, profile=1, mps=SIGNALLING)
        text = f"the parent's tensor has the shape {shape}, not (11, 8)"
        kinds.append((f"parent_shape_{shape[0]}x{shape[1]}", [first], text, "invalid"))
    for name, parents, wrong, error in kinds:
        yield name, CaseFiles(series[-1], wrong, "14", parents=parents, error=error, errata=("E1",))
