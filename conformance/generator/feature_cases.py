"""Cases made by hand that must be decoded: one syntax element or tool each."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from ..suite.cases import CaseFiles
from .building import (
    SIGNALLING,
    Coded,
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
from .coded_tensor import NEXT
from .random_tensors import UnitPlan, block_names
from .syntax import BI, BN, DC, FLOAT, LS, NNR_QNT, RAW_FLOAT, REFLIST, named, unit

Draft = tuple[str, CaseFiles]
FORMATS = "int32 float32 int2 int3 int4 int8 int16 int64 float16 float64"
CODEBOOKS: dict[str, tuple[list[int], int]] = {
    "one_value": ([5], 0),
    "zero_first": ([-3, 0, 2, 9, 40], 0),
    "zero_last": ([-30, -4, 0], 2),
    "zero_inside": ([-60, -7, 1, 2, 3, 50], 2),
}
EVERY_MAGNITUDE = [sign * m for m in range(1, 259) for sign in (1, -1)]
"""Those with greater-than contexts of their own, and more."""


def case(
    name: str, content: DataUnit | bytes, exercises: str, section: str, *errata: str, **more: Any
) -> Draft:
    """A case; its tensors come later, from the educational decoder.

    `content` is a stream, or its only data unit. For `more`: `CaseFiles`.
    """
    data = content if isinstance(content, bytes) else stream(content)
    return name, CaseFiles(data, exercises, section, errata=errata, **more)


def category(category_name: str, *groups: Iterable[Draft]) -> Iterator[Draft]:
    """The cases of all groups, under the name of their category."""
    for name, files in chain(*groups):
        yield f"{category_name}/{name}", files


def feature_cases() -> Iterator[Draft]:
    return category("features", payloads(), blocks(), coding(), codebooks(), parameter_sets(),
                    other_units(), updates())  # fmt: skip


def payloads() -> Iterator[Draft]:
    """Payload types, data formats, shapes."""
    numbers = struct.pack("<6f", 1.5, -0.0, float("inf"), float("-inf"), 1e-45, 3.4e38)
    raw = DataUnit(UnitPlan(RAW_FLOAT, ("r",), (2, 3)), [[0] * 6], payload=numbers)
    yield case("raw_float", raw, "a RAW_FLOAT payload, infinities and -0 included", "6")
    extremes = integers([0, 1, -1, (1 << 31) - 1, -(1 << 31), 77], (6,))
    yield case("integers", extremes, "an INT payload with the extremes of int32", "6")
    for number, name in enumerate(FORMATS.split()):
        make = floats if name.startswith("float") else integers
        modulus = {"int2": 4, "int3": 8}.get(name, 9)
        v = [x - (modulus == 4 and x > 1) for x in ramp(30, modulus)]
        v = [min(x, {"int2": 1, "int3": 3}.get(name, 9)) for x in v]
        made = make(v, (5, 6), **with_format(number))
        text = f"nnr_decompressed_data_format {number}, {name.upper()}"
        yield case(f"data_format_{name}", made, text, "5", "E11")
    for dimensions in ((1,), (7,), (1, 1), (1, 9), (9, 1), (2, 3, 4), (2, 1, 3, 1, 2, 1, 1, 2)):
        name = "x".join(map(str, dimensions))
        made = floats(ramp(math.prod(dimensions)), dimensions)
        yield case(f"shape_{name}", made, f"tensor_dimensions {name}", "6")
    zero = stream(floats([0] * 60, (12, 5)), profile=1)
    yield case("all_zero", zero, "a tensor of zeros", "10")
    units = [floats([1, 2], (2,), name) for name in ("", "größe/β 层", "x" * 300, "a_Gb_H.w")]
    text = "names: empty, not ASCII, with / and _G inside, long"
    yield case("names", stream(*units), text, "5.1")


def blocks() -> Iterator[Draft]:
    """Every combination of tensors in a BLOCK, with three profiles of what may go with it."""
    for types in range(1, 16):
        for dq in (0, 1):
            data = stream(layer(types, dq_flag=dq), profile=dq)
            what = [n for n, bit in (("DC", DC), ("LS", LS), ("BN", BN), ("BI", BI)) if types & bit]
            text = f"BLOCK with {', '.join(what)}; dq_flag {dq}, profile {dq}"
            errata = ("E20",) if types & DC else ()
            yield case(f"block_{'_'.join(what).lower()}_dq{dq}", data, text, "6", *errata)
    both = layer(DC, shape=(20, 18), rank=10, scan_order=1)
    text = "entry points of G, and then those of H, which has two block rows"
    yield case("block_dc_entry_points", both, text, "13", "E16")
    for ending, shape in (("_G", (6, 2)), ("_H", (2, 10))):
        plan = UnitPlan(FLOAT, ("w" + ending,), (6, 10), DC, 2, 6)
        factor = DataUnit(plan, [ramp(math.prod(shape))])
        text = f"a factor {ending[1]} in a unit of its own"
        yield case(f"factor{ending.lower()}", factor, text, "6", "E9")


def layer(types: int, shape: tuple[int, ...] = (6, 10), rank: int = 2, **header: Any) -> DataUnit:
    """A BLOCK of these types, its tensors all different."""
    rows, size = shape[0], math.prod(shape)
    weights = [ramp(rows * rank), ramp(rank * size // rows, 5)] if types & DC else [ramp(size)]
    names = block_names(types, "w", "w", "bn")
    vectors = [ramp(rows, 5 + 2 * i) for i in range(len(names) - len(weights))]
    decomposition = (rank, rows) if types & DC else (0, 0)
    tensors = [Coded(v, qp_delta=3 * i - 7) for i, v in enumerate([*vectors, *weights])]
    return block(names, shape, types, tensors, *decomposition, **header)


def coding() -> Iterator[Draft]:
    """Scan orders, contexts, initialization, dependent quantization, row skipping."""
    for order in range(1, 5):
        side = 4 << order
        rows, cols = 2 * side + 1 if order < 4 else side + 1, side + 3
        for dq in (0, 1):
            v = ramp(rows * cols, 9, zeros=(2, 3, 6, 11)[order - 1])
            data = stream(floats(v, (rows, cols), scan_order=order, dq_flag=dq), profile=dq)
            text = f"scan_order {order} with several block rows and blocks; dq_flag {dq}"
            yield case(f"scan_order_{order}_dq{dq}", data, text, "13")
    sparse = [*([0] * 40), 300, *([0] * 40), -300, 1, -1] * 2
    for length in (1, 2, 9, 256):
        made = floats(sparse, (166 + 2,), cabac_unary_length_minus1=length - 1)
        yield case(f"unary_length_{length}", made, f"N = {length}", "10")
    prefixes = [sign * (10 + (1 << i)) for i in range(31) for sign in (1, -1)]
    made = floats(prefixes, (len(prefixes),))
    yield case("remainder_prefixes", made, "every length of the remainder's prefix", "10")
    made = floats(EVERY_MAGNITUDE, (len(EVERY_MAGNITUDE),), cabac_unary_length_minus1=255)
    yield case("greater_than_contexts", made, "every greater-than context of N = 256", "9")
    for index in range(9):
        made = floats(Coded(ramp(90, 11), index=index), (9, 10), dq_flag=index % 2)
        text = f"initialization index {index} in all contexts"
        yield case(f"initialization_{index}", made, text, "8")
    states = floats(state_walk(), (len(state_walk()),), dq_flag=1)
    yield case("quantizer_states", states, "every state with both parities", "11")
    for cols in (4, 5, 6, 7):
        for order in (0, 1):
            coded = Coded(ramp(20 * cols, 9), skipped=[row % 3 == 1 for row in range(20)])
            data = stream(floats(coded, (20, cols), dq_flag=1, scan_order=order), profile=1)
            text = f"skipped rows of {cols} columns, dq_flag 1, scan_order {order}"
            errata = ("E18",) if order else ()
            yield case(f"row_skip_{cols}_scan{order}", data, text, "9", *errata)


def state_walk() -> list[int]:
    """Integers with which the machine takes every transition."""
    values: list[int] = []
    state, visits = 0, {(s, p): 0 for s in range(8) for p in (0, 1)}
    while min(visits.values()) == 0 and len(values) < 200:
        parity = int(visits[state, 1] <= visits[state, 0])
        visits[state, parity] += 1
        values.append((-1) ** len(values) * (2 - parity) if len(values) % 3 else parity)
        state = NEXT[state][parity]
    return values


def codebooks() -> Iterator[Draft]:
    """Where zero lies in a codebook, in both profiles, with and without blocks."""
    for kind, (values, zero) in CODEBOOKS.items():
        for profile in (0, 1):
            v = [min(max(x, -zero), len(values) - 1 - zero) for x in ramp(60, 9)]
            book = with_codebook(values, zero, codebook_egk=2)
            data = stream(floats(v, (12, 5), **book, scan_order=profile), profile=profile)
            text = f"codebook with {kind.replace('_', ' ')}, profile {profile}"
            errata = ("E5",) if profile == 0 else ("E17",) if kind == "one_value" else ()
            yield case(f"codebook_{kind}_p{profile}", data, text, "5.2", *errata)
    for egk in range(16):
        book = with_codebook([-70000, -3, 0, 1, 40000], 2, codebook_egk=egk)
        made = floats([-2, -1, 0, 1, 2], (5,), **book)
        yield case(f"codebook_egk_{egk}", made, f"codebook_egk {egk}", "5.2")
    wide = with_codebook(list(range(-40, 41)), 40)
    made = floats([-40, 40, 39, -39, 0, 3, 4, 20], (8,), **wide, cabac_unary_length_minus1=2)
    text = "a remainder that the codebook's size bounds"
    yield case("codebook_remainder", stream(made, profile=1), text, "10")


def parameter_sets() -> Iterator[Draft]:
    """Densities, methods, performance maps, what profile 1 adds, LPS."""
    for density in range(8):
        made = floats(Coded(ramp(12), qp_delta=-9), (12,))
        data = stream(made, mps_qp_density=density, mps_quantization_parameter=-5)
        yield case(f"qp_density_{density}", data, f"qp_density {density}", "12")
    nine = floats(ramp(9), (9,))
    data = stream(integers(ramp(9), (9,)), mps_quantization_method_flags=0)
    text = "no parameter set gives a quantization parameter"
    yield case("no_quantization", data, text, "4.3", "E40")
    for methods in (2, 3):
        data = stream(nine, mps_quantization_method_flags=methods)
        text = f"mps_quantization_method_flags {methods}"
        yield case(f"quantization_method_{methods}", data, text, "4.1", "E6")
    lps = {"lps_quantization_method_flags": 1, "lps_qp_density": 2, "lps_quantization_parameter": 5}
    first, second, third = (floats(ramp(9), (9,), name) for name in "abc")
    data = stream(first, layer_parameters(**lps), second, layer_parameters(), third)
    text = "an LPS replaces the quantization parameter, and one without brings back the MPS's"
    yield case("layer_parameters", data, text, "4.3", "E24", "E38")
    maps = stream(nine, profile=1, **every_map())
    yield case("performance_maps", maps, "all performance maps, with entries", "4.2", "E13")
    empty = {f"mps_{kind}_flag": 1 for kind in ("sparsification", "pruning", "unification")}
    maps = stream(nine, **empty)
    yield case("performance_maps_empty", maps, "performance maps without entries", "4.2", "E13")


def every_map() -> dict[str, Any]:
    """Elements of an MPS with all maps and texts."""
    flags = ("sparsification", "pruning", "unification", "decomposition_performance_map")
    accuracy = {"spm_count_classes": 2, "spm_class_bitmask": 3, "spm_nn_class_accuracy": 0.5}
    shapes = {"count_reshaped_tensor_dimension": 3, "reshaped_tensor_dimension": 200}
    blocks = {**shapes, "count_block_dimension": 2}
    return {
        **{f"mps_{name}_flag": 1 for name in flags},
        "sparsification_performance_map": [accuracy, {}],
        "pruning_performance_map": [{"ppm_count_classes": 1}],
        "unification_performance_map": [blocks, {"upm_count_classes": 1}],
        "decomposition_performance_map": [{"dpm_count_classes": 300}, {}],
        "base_model_id_present_flag": 1,
        "validation_set_performance_present_flag": 1,
        "base_model_id": "a model",
        "performance_metric_type": "top-1",
    }


def other_units() -> Iterator[Draft]:
    """Topology, reference lists, quantization data, private units, sizes, order."""
    nine = floats(ramp(9), (9,))
    for number, name in enumerate(("unrec", "nnef", "onnx", "pyt", "tef")):
        content: Any = b"\0\1\2" if name in ("nnef", "onnx") else "net"
        data = stream(topology(topology_storage_format=number, topology_data=content), nine)
        errata = ("E7", "E36") if content != "net" else ()
        text = f"topology of format {name.upper()}"
        yield case(f"topology_{name}", data, text, "4.4", *errata)
    deflated = topology(topology_compression_format=1, topology_data=b"\x78\x9c\x03\0\0\0\0\1")
    yield case("topology_deflated", stream(deflated, nine), "deflated topology data", "4.4", "E36")
    yield from indexed_names()
    quantization = unit(NNR_QNT, b"\0\0scales\0")
    data = stream(quantization, nine, unit(NNR_QNT, b"\0\1\x78\x9c\0"))
    yield case("quantization_data", data, "quantization data units", "4.5", "E24")
    split = {"partial_data_counter_present_flag": 1, "partial_data_counter": 9}
    data = start() + unit(32, b"abc") + parameters() + nine.bytes() + unit(63, b"", **split)
    yield case("private_units", data, "private units are passed over", "2", "E22")
    long = replace(nine, unit_header={"nnr_unit_size_flag": 1})
    yield case("unit_size_31_bits", long, "nnr_unit_size of 31 bits", "2")
    dependent = replace(nine, unit_header={"independently_decodable_flag": 0})
    yield case("dependent_unit", dependent, "independently_decodable_flag 0", "2")
    behind = stream(nine, topology())
    yield case("topology_behind", behind, "a topology unit behind the data", "2", "E36")
    yield case("no_data_units", stream(), "a stream without data units", "2", "E35")


def indexed_names() -> Iterator[Draft]:
    """Names as places in a reference list."""
    names = named("w", "other", "w_G", "w_H")
    listed = topology(topology_storage_format=REFLIST, names=names)
    index = [{"topology_elem_id_index": number} for number in range(len(names))]
    units = (floats(ramp(9), (9,), names=index[1:2]), layer(DC, names=index[2:]))
    data = stream(listed, *units, mps_topology_indexed_reference_flag=1)
    yield case("indexed_names", data, "names as indices into a reference list", "5.1", "E8")
    plan = UnitPlan(FLOAT, ("w_H",), (6, 30), DC, 10, 6)
    factor = DataUnit(plan, [ramp(300)], {"names": index[3:], "scan_order": 1})
    data = stream(listed, factor, mps_topology_indexed_reference_flag=1)
    text = "a factor of its own with an indexed name: its shape depends on the name"
    yield case("indexed_factor", data, text, "13", "E8", "E9")


def updates() -> Iterator[Draft]:
    """Node ids, temporal contexts, history."""
    for dq in (0, 1):
        for temporal, history in ((0, 0), (1, 0), (0, 1), (1, 1)):
            text = f"an update with temporal contexts {temporal}, history {history}, dq_flag {dq}"
            name = f"update_t{temporal}_h{history}_dq{dq}"
            yield update_case(name, update_series(dq, temporal, history), text)
    for kind in (1, 2):
        series = update_series(0, 1, 0, parent_node_id_type=kind)
        text = f"a parent by digest, parent_node_id_type {kind}"
        yield update_case(f"parent_type_{kind}", series, text, "E1")
    series = update_series(0, 1, 1, node_id_present_flag=0)
    text = "a parent whose ids are those of the tensor, which has no node id"
    yield update_case("parent_ids", series, text, "E1", "E29")
    text = "every greater-than context where base is not 0, of N = 256"
    *parents, last = wide_contexts()
    yield case("greater_than_base_contexts", last, text, "9", parents=parents)


def update_case(name: str, series: list[bytes], text: str, *errata: str) -> Draft:
    """A case of the last stream of a series."""
    return case(name, series[-1], text, "14", *errata, parents=series[:-1])


def update_series(dq: int, temporal: int, history: int, **ids: Any) -> list[bytes]:
    """Three streams of a matrix, the second of which holds another tensor alone."""
    values = [ramp(88, 5), ramp(88, 3), ramp(88, 9)]
    node = {"node_id_present_flag": 1, "put_node_depth": 1}
    first = floats(values[0], (11, 8), dq_flag=dq, **node)
    data = stream(first, profile=1, **SIGNALLING)
    other = floats(values[1], (11, 8), "other", **node, parameter_id=1)
    q = first.q["w"]
    coded = Coded(values[2], base=q if temporal else None)
    coded.history = [x != 0 for x in q] if history else None
    header = {"dq_flag": dq, "scan_order": temporal, **node, "put_node_depth": 2, **ids}
    parent = {"parent_node_id_present_flag": 1, "temporal_context_modeling_flag": temporal}
    last = floats(coded, (11, 8), **header, **parent)
    return [data, *(stream(u, profile=1, **SIGNALLING) for u in (other, last))]


def wide_contexts() -> list[bytes]:
    """An update with each magnitude twice, once over a small base and once over a large one."""
    base = [1 if m > 0 else 300 for m in EVERY_MAGNITUDE]
    node = {"node_id_present_flag": 1, "cabac_unary_length_minus1": 255}
    parent = {"parent_node_id_present_flag": 1, "temporal_context_modeling_flag": 1}
    first = floats(base, (len(base),), **node, put_node_depth=1)
    coded = Coded(EVERY_MAGNITUDE, base=base)
    last = floats(coded, (len(base),), **node, **parent, put_node_depth=2)
    return [stream(u, profile=1, **SIGNALLING) for u in (first, last)]
