"""Cases made by hand that every decoder must refuse: a statement of the document broken in each."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from .building import (
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
    with_codebook,
    with_format,
)
from .feature_cases import Draft, case, category, layer, update_series
from .syntax import DC, NNR_AGG, NNR_MPS, NNR_NDU, NNR_QNT, NNR_STR, REFLIST, named, unit


class Mistake(NamedTuple):
    """What is wrong, the kind of error, and a stream, or the only data unit of one."""

    name: str
    content: DataUnit | bytes
    wrong: str
    error: str = "invalid"


POINTS = {
    "E3": "codeword_start*",
    "E4": "codebook_index_*",
    "E8": "index_*",
    "E10": "n*_dimensions no_input_parameters zero_dimensions",
    "E11": "*data_format_10 *_as_* int[0-9]*_*",
    "E12": "aggregate partial_data topology_prun",
    "E13": "map_*",
    "E14": "no_quantization_parameter",
    "E15": "*_reserved*",
    "E33": "entry_*",
    "E35": "name_twice name_of_product",
    "E39": "*align *stop_bit* mps_reserved* profile_2 topology_format_7 codebook_above_32_bits "
    "step_* dimension_* rank_0",
}
"""Points of spec/errata.md, and globs of the names that they concern."""


def invalid_cases() -> Iterator[Draft]:
    sections = {"2": units, "4": parameter_sets, "4.4": topologies, "5": headers, "5.1": names,
                "5.2": codebooks, "6": payloads, "13": entry_points, "7": codewords}  # fmt: skip
    mistakes = (
        case(name, content, wrong, section, *points(name), error=error)
        for section, group in sections.items()
        for name, content, wrong, error in group()
    )
    return category("invalid", mistakes, updates())


def points(name: str) -> tuple[str, ...]:
    """The points of spec/errata.md that a case touches."""
    return tuple(
        point
        for point, globs in POINTS.items()
        if any(fnmatch.fnmatchcase(name, glob) for glob in globs.split())
    )


def plain(**header: Any) -> DataUnit:
    """A FLOAT unit with nothing wrong yet."""
    return floats(ramp(60, 9), (12, 5), **header)


def units() -> Iterator[Mistake]:
    """Framing and order."""
    data = plain().bytes()
    good = stream(data)
    yield Mistake("empty", b"", "no unit at all", "truncated")
    text = "the data end inside a unit's size"
    yield Mistake("ends_in_unit_size", start() + b"\0", text, "truncated")
    yield Mistake("ends_in_unit", good[:-1], "the data end before the last unit does", "truncated")
    yield Mistake("size_below_header", start() + b"\0\2\6\1", "nnr_unit_size 2")
    yield Mistake("size_zero", start() + b"\0\0\6\1", "nnr_unit_size 0")
    yield Mistake("no_start_unit", parameters() + data, "the first unit is no NNR_STR")
    yield Mistake("two_start_units", start() + good, "a second NNR_STR")
    yield Mistake("two_parameter_sets", stream(parameters(), data), "a second NNR_MPS")
    yield Mistake("no_parameter_set", start() + data, "an NNR_NDU before the NNR_MPS")
    lps = start() + layer_parameters() + parameters() + data
    yield Mistake("layer_parameters_first", lps, "an NNR_LPS before the NNR_MPS")
    for number in (7, 31):
        text = f"the reserved nnr_unit_type {number}"
        yield Mistake(f"unit_type_{number}", stream(unit(number, b""), data), text)
    text = "an NNR_AGG, outside the document"
    yield Mistake("aggregate", stream(unit(NNR_AGG, b"")), text, "unsupported")
    split = replace(plain(), unit_header={"partial_data_counter_present_flag": 1})
    text = "a data unit in parts, outside the document"
    yield Mistake("partial_data", split, text, "unsupported")
    longer = unit(NNR_STR, b"\0\0") + parameters() + data
    yield Mistake("start_too_long", longer, "a byte behind the content of NNR_STR")
    longer = start() + unit(NNR_MPS, parameters()[3:] + b"\0") + data
    yield Mistake("parameters_too_long", longer, "a byte behind the content of NNR_MPS")
    short = unit(NNR_STR, b"") + good[4:]
    yield Mistake("start_too_short", short, "an NNR_STR without content", "truncated")


def parameter_sets() -> Iterator[Mistake]:
    """Profile, reserved bits, performance maps."""
    data = start(2) + parameters() + plain().bytes()
    yield Mistake("profile_2", data, "general_profile_idc 2", "unsupported")
    for profile, element in ((0, "reserved"), (1, "reserved"), (1, "reserved_2")):
        data = stream(plain(), profile=profile, **{element: 1})
        text = f"reserved bits of the MPS, profile {profile}"
        yield Mistake(f"mps_{element}_p{profile}", data, text)
    for element in ("reserved", "reserved_2"):
        data = stream(layer_parameters(**{element: 1}), plain())
        yield Mistake(f"lps_{element}", data, "reserved bits of an LPS")
    data = stream(plain(), mps_quantization_method_flags=4)
    yield Mistake("mps_method_4", data, "a reserved quantization method in the MPS")
    data = stream(layer_parameters(lps_quantization_method_flags=4), plain())
    yield Mistake("lps_method_4", data, "a reserved quantization method in an LPS")
    yield Mistake("mps_align", stream(plain(), align=0), "align of the MPS without its bit 1")
    counts = {"sparsification": "spm_count", "pruning": "ppm_count", "unification": "upm_count"}
    counts["decomposition_performance_map"] = "dpm_count_thresholds"
    for kind, count in counts.items():
        data = stream(plain(), **{f"mps_{kind}_flag": 1, count: 0})
        yield Mistake(f"map_{kind.split('_')[0]}_0", data, f"a {kind} map with the count 0")
    data = stream(plain(), mps_quantization_method_flags=0)
    text = "no parameter set has a qp for a FLOAT unit"
    yield Mistake("no_quantization_parameter", data, text)


def topologies() -> Iterator[Mistake]:
    """Topology and quantization data."""

    def mistake(name: str, wrong: str, error: str = "invalid", **record: Any) -> Mistake:
        return Mistake(name, stream(topology(**record), plain()), wrong, error)

    text = "a reserved topology_storage_format"
    yield mistake("topology_format_7", text, topology_storage_format=7)
    text = "a pruning topology, outside the document"
    yield mistake("topology_prun", text, "unsupported", topology_storage_format=5)
    text = "a reserved topology_compression_format"
    yield mistake("topology_compression_2", text, topology_compression_format=2)
    text = "topology data without their zero byte"
    yield mistake("topology_unended", text, "truncated", topology_data=b"abc")
    data = stream(unit(NNR_QNT, b"\0\2\0"), plain())
    text = "a reserved quantization_compression_format"
    yield Mistake("quantization_compression_2", data, text)
    listed = {"topology_storage_format": REFLIST, "names": [{}, {}]}
    deflated = {**listed, "topology_compression_format": 1}
    yield mistake("list_deflated", "a deflated reference list", "unsupported", **deflated)


def headers() -> Iterator[Mistake]:
    """Elements of the data unit's header."""

    def mistake(name: str, wrong: str, error: str = "invalid", **header: Any) -> Mistake:
        return Mistake(name, plain(**header), wrong, error)

    payload = "nnr_compressed_data_unit_payload_type"
    yield mistake("payload_type_4", "a reserved payload type", **{payload: 4})
    several = "nnr_multiple_topology_elements_present_flag"
    yield mistake("several_names_in_float", "several names in a FLOAT unit", **{several: 1})
    yield Mistake("one_name_in_block", layer(8, **{several: 0}), "a BLOCK with one name")
    yield mistake("data_format_10", "a reserved data format", **with_format(10))
    text = "an integer format of a FLOAT unit"
    yield mistake("float_as_int8", text, "unsupported", **with_format(5))
    text = "a float format of an INT unit"
    yield Mistake("integer_as_float32", integers([1], (1,), **with_format(1)), text, "unsupported")
    yield mistake("scan_order_5", "a reserved scan_order", scan_order=5)
    text = "a unit without input parameters"
    yield mistake("no_input_parameters", text, "unsupported", input_parameters_present_flag=0)
    text = "a unit without dimensions"
    yield mistake("no_dimensions", text, "unsupported", tensor_dimensions_flag=0)
    yield mistake("zero_dimensions", "no dimension", "unsupported", tensor_dimensions=[])
    yield mistake("dimension_0", "a dimension of 0", tensor_dimensions=[12, 0])
    yield mistake("align", "align of a data unit without its bit 1", align=0)
    shifted = stream(plain(first_tensor_dimension_shift=1), profile=1)
    yield Mistake("dimension_shift", shifted, "first_tensor_dimension_shift 1", "unsupported")
    for name, rank, rows in (("rank_0", 0, 6), ("g_rows_0", 2, 0), ("g_rows_no_divisor", 2, 7)):
        made = layer(DC, decomposition_rank=rank, g_number_of_rows=rows)
        yield Mistake(name, made, f"a decomposition with rank {rank}, {rows} rows of G")
    zeros = stream(unit(NNR_NDU, b"\x09w\0" + b"\x20" + bytes(12)))
    yield Mistake("long_exp_golomb", zeros, "ue(k) with more zeros than 32 bits allow")
    identified = stream(plain(node_id_present_flag=1, device_id=1 << 33), profile=1)
    text = "a device_id beyond 32 bits, which nothing else would tell"
    yield Mistake("exp_golomb_33_bits", identified, text)
    signalled = plain(parent_node_id_present_flag=1, parent_node_id_type=3)
    data = stream(signalled, profile=1, **SIGNALLING)
    yield Mistake("parent_type_3", data, "a reserved parent_node_id_type")


def names() -> Iterator[Mistake]:
    """Identifiers and indices."""
    yield Mistake("name_not_utf8", floats([1], (1,), names=named(b"\xff\0")), "no UTF-8")
    data = stream(unit(NNR_NDU, b"\x09www"))
    yield Mistake("name_unended", data, "a name without end", "truncated")
    yield Mistake("name_twice", stream(plain(), plain()), "two units of one name")
    data = stream(layer(DC), floats([1], (1,), "w"))
    yield Mistake("name_of_product", data, "a tensor with the name of a product")
    twice = block(("w", "w"), (3, 2), 8, [[1, 0, 1], ramp(6)])
    yield Mistake("name_twice_in_block", twice, "a name twice in a BLOCK")
    fewer = layer(8 + 2, names=named("w", "b"))
    yield Mistake("names_too_few", fewer, "fewer names than tensors in a BLOCK")
    more = layer(8, names=named("w", "b", "c"))
    yield Mistake("names_too_many", more, "more names than tensors in a BLOCK")
    wrong = layer(DC, names=named("w_G", "v_H"))
    yield Mistake("names_of_factors", wrong, "factors that are not called X_G and X_H")
    text = "align of a list of names without its bit 1"
    yield Mistake("names_align", layer(8, align_of_names=1), text)
    of_indices = partial(stream, mps_topology_indexed_reference_flag=1)
    index = plain(names=[{"topology_elem_id_index": 2}])
    yield Mistake("index_without_list", of_indices(index), "an index without a reference list")
    listed = topology(topology_storage_format=REFLIST, names=named("a", "b"))
    yield Mistake("index_outside", of_indices(listed, index), "an index outside of the list")


def codebooks() -> Iterator[Mistake]:
    """Codebooks, and indices into them."""

    def mistake(name: str, wrong: str, book: dict[str, Any], v: int = 0) -> Mistake:
        return Mistake(name, floats([v, 0], (2,), **book), wrong)

    empty = with_codebook([0], 0, codebook_size=0)
    yield mistake("codebook_empty", "a codebook of no values", empty)
    outside = with_codebook([0, 1, 2, 3, 4], 4, codebook_size=3)
    yield mistake("codebook_zero_offset", "zero_offset outside of the codebook", outside)
    wide = with_codebook([0, 1 << 31], 0)
    yield mistake("codebook_above_32_bits", "a codebook value of 2^31", wide)
    wide = with_codebook([-(1 << 31) - 1, 0], 1)
    yield mistake("codebook_below_32_bits", "a codebook value of -2^31 - 1", wide)
    book = with_codebook([-4, 0, 4], 1)
    yield mistake("codebook_index_above", "an index above the codebook", book, 2)
    yield mistake("codebook_index_below", "an index below the codebook", book, -2)
    doubled = stream(floats([1, 1, 1], (3,), **book, dq_flag=1), profile=1)
    text = "an index that leaves the codebook by the doubling"
    yield Mistake("codebook_index_doubled", doubled, text)
    book = with_codebook(list(range(12)), 0)
    suffix = stream(floats([13, 0], (2,), **book, cabac_unary_length_minus1=0), profile=1)
    text = "an index that leaves the codebook by the suffix of the remainder"
    yield Mistake("codebook_index_suffix", suffix, text)


def payloads() -> Iterator[Mistake]:
    """Steps, data formats, raw floats."""
    steps = (("subnormal", -126 * 4 - 1, "is subnormal"), ("large", 128 * 4, "is 2^128"))
    for name, qp, what in steps:
        data = stream(plain(), mps_quantization_parameter=qp)
        yield Mistake(f"step_{name}", data, f"a step that {what}")
    for number, bits in ((2, 2), (3, 3), (4, 4), (5, 8), (6, 16)):
        for sign, v in (("above", 1 << (bits - 1)), ("below", -(1 << (bits - 1)) - 1)):
            made = integers([0, v], (2,), **with_format(number))
            yield Mistake(f"int{bits}_{sign}", made, f"{v} in a tensor of INT{bits}")
    raw = {"nnr_compressed_data_unit_payload_type": 2}
    for name, size in (("short", 7), ("long", 9)):
        made = replace(floats([0, 0], (2,), **raw), payload=bytes(size))
        yield Mistake(f"raw_float_{name}", made, f"{size} bytes of two RAW_FLOAT elements")
    made = replace(floats([0, 0], (2, 1), **raw, scan_order=1), payload=bytes(8))
    yield Mistake("raw_float_scan_order", made, "scan_order 1 in a RAW_FLOAT unit")


def entry_points() -> Iterator[Mistake]:
    """Entry points that say something else than the codeword."""
    right = floats(ramp(20 * 9, 9), (20, 9), scan_order=1, dq_flag=1)
    right.bytes()
    for number, point in enumerate(right.points):
        for element, change in (("value8", 1), ("dq_state", 1), ("offset", 1), ("offset", -1)):
            value = point[element] + change
            value %= {"value8": 256, "dq_state": 8}.get(element, 1 << 20)
            made = replace(right, entries={number: {element: value}})
            name = f"entry_{number}_{element}_{'plus' if change > 0 else 'minus'}"
            yield Mistake(name, made, f"{element} of entry point {number} is wrong")
    made = replace(right, entries={1: {"offset": -5}})
    yield Mistake("entry_offset_negative", made, "an offset below 0")


def codewords() -> Iterator[Mistake]:
    """The arithmetic codeword, its start and its end."""

    def mistake(
        name: str, wrong: str, change: Callable[[bytes], bytes], error: str = "invalid"
    ) -> Mistake:
        return Mistake(name, replace(plain(), payload=change), wrong, error)

    text = "a first value beyond the range"
    yield mistake("codeword_start", text, lambda w: b"\xff\xff" + w[2:])
    constant = replace(floats([0, 0], (2,), **with_codebook([5], 0)), payload=b"\xff\0\x80")
    text += ", which nothing else would tell"
    yield Mistake("codeword_start_alone", stream(constant, profile=1), text)
    yield mistake("codeword_empty", "no codeword", lambda _: b"", "truncated")
    yield mistake("codeword_one_byte", "a codeword of one byte", lambda w: w[:1], "truncated")
    text = "a codeword without its last bytes"
    yield mistake("codeword_cut", text, lambda w: w[:-4], "truncated")
    yield mistake("codeword_longer", "a byte behind the codeword", lambda w: w + b"\0")
    text = "no stop bit"
    yield mistake("stop_bit_missing", text, lambda w: w[:-1] + bytes([w[-1] & (w[-1] - 1)]))
    yield mistake("bits_behind_stop_bit", "a bit behind the stop bit", _with_bit_behind)
    ended = replace(plain(), terminating_bin=0)
    yield Mistake("terminating_bin", ended, "the terminating bin is 0")


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
        first = stream(other, profile=1, **SIGNALLING)
        text = f"the parent's tensor has the shape {shape}, not (11, 8)"
        kinds.append((f"parent_shape_{shape[0]}x{shape[1]}", [first], text, "invalid"))
    for name, parents, wrong, error in kinds:
        yield case(name, series[-1], wrong, "14", "E1", parents=parents, error=error)
