"""Cases made by hand that must be decoded: one syntax element or tool each."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

from ..suite.cases import CaseFiles
from .building import (
    MPS,
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
)
from .coded_tensor import NEXT
from .random_tensors import UnitPlan
from .syntax import BI, BN, DC, FLOAT, LS, NNR_QNT, RAW_FLOAT, REFLIST, unit

Draft = tuple[str, CaseFiles]
FORMATS = "int32 float32 int2 int3 int4 int8 int16 int64 float16 float64"
CODEBOOKS: dict[str, tuple[list[int], int]] = {
    "one_value": ([5], 0),
    "zero_first": ([-3, 0, 2, 9, 40], 0),
    "zero_last": ([-30, -4, 0], 2),
    "zero_inside": ([-60, -7, 1, 2, 3, 50], 2),
}


def case(name: str, data: bytes, exercises: str, section: str, **more: Any) -> Draft:
    """A case; its tensors come later, from the educational decoder."""
    return name, CaseFiles(data, exercises, section, **more)


def feature_cases() -> Iterator[Draft]:
    """All of the category "features"."""
    for group in (payloads, blocks, coding, codebooks, parameter_sets, other_units, updates):
        for name, files in group():
            yield f"features/{name}", files


def payloads() -> Iterator[Draft]:
    """Payload types, data formats, shapes."""
    numbers = struct.pack("<6f", 1.5, -0.0, float("inf"), float("-inf"), 1e-45, 3.4e38)
    raw = DataUnit(UnitPlan(RAW_FLOAT, ("r",), (2, 3)), [Coded([0] * 6)], payload=numbers)
    yield case("raw_float", stream(raw), "a RAW_FLOAT payload, infinities and -0 included", "6")
    extremes = integers([0, 1, -1, (1 << 31) - 1, -(1 << 31), 77], (6,))
    yield case("integers", stream(extremes), "an INT payload with the extremes of int32", "6")
    for number, name in enumerate(FORMATS.split()):
        make = floats if name.startswith("float") else integers
        modulus = {"int2": 4, "int3": 8}.get(name, 9)
        v = [x - (modulus == 4 and x > 1) for x in ramp(30, modulus)]
        v = [min(x, {"int2": 1, "int3": 3}.get(name, 9)) for x in v]
        header = {"nnr_decompressed_data_format_present_flag": 1}
        data = stream(make(v, (5, 6), **header, nnr_decompressed_data_format=number))
        text = f"nnr_decompressed_data_format {number}, {name.upper()}"
        yield case(f"data_format_{name}", data, text, "5", errata=("E11",))
    for dimensions in ((1,), (7,), (1, 1), (1, 9), (9, 1), (2, 3, 4), (2, 1, 3, 1, 2, 1, 1, 2)):
        name = "x".join(map(str, dimensions))
        data = stream(floats(ramp(math.prod(dimensions)), dimensions))
        yield case(f"shape_{name}", data, f"tensor_dimensions {name}", "6")
    zero = stream(floats([0] * 60, (12, 5)), profile=1)
    yield case("all_zero", zero, "a tensor of zeros", "10")
    named = [floats([1, 2], (2,), name) for name in ("", "größe/β 层", "x" * 300, "a_Gb_H.w")]
    yield case(
        "names", stream(*named), "names: empty, not ASCII, with / and _G inside, long", "5.1"
    )


def blocks() -> Iterator[Draft]:
    """Every combination of tensors in a BLOCK, with three profiles of what may go with it."""
    for types in range(1, 16):
        for dq in (0, 1):
            data = stream(layer(types, dq_flag=dq), profile=dq)
            what = [n for n, bit in (("DC", DC), ("LS", LS), ("BN", BN), ("BI", BI)) if types & bit]
            text = f"BLOCK with {', '.join(what)}; dq_flag {dq}, profile {dq}"
            errata = ("E20",) if types & DC else ()
            yield case(f"block_{'_'.join(what).lower()}_dq{dq}", data, text, "6", errata=errata)
    both = layer(DC, shape=(20, 18), rank=10, scan_order=1)
    text = "entry points of G, and then those of H, which has two block rows"
    yield case("block_dc_entry_points", stream(both), text, "13", errata=("E16",))
    for ending, shape in (("_G", (6, 2)), ("_H", (2, 10))):
        plan = UnitPlan(FLOAT, ("w" + ending,), (6, 10), DC, 2, 6)
        factor = DataUnit(plan, [Coded(ramp(shape[0] * shape[1]))])
        text = f"a factor {ending[1]} in a unit of its own"
        yield case(f"factor{ending.lower()}", stream(factor), text, "6", errata=("E9",))


def layer(types: int, shape: tuple[int, ...] = (6, 10), rank: int = 2, **header: Any) -> DataUnit:
    """A BLOCK of these types, its tensors all different."""
    rows, size = shape[0], math.prod(shape)
    weights = (
        [[*ramp(rows * rank)], [*ramp(rank * size // rows, 5)]] if types & DC else [ramp(size)]
    )
    names = ["w_G", "w_H"] if types & DC else ["w"]
    names += ["w.scaling"] if types & LS else []
    names += [f"bn.{part}" for part in ("beta", "gamma", "mean", "var")] if types & BN else []
    names += ["w.bias"] if types & BI else []
    vectors = [ramp(rows, 5 + 2 * i) for i in range(len(names) - len(weights))]
    decomposition = (rank, rows) if types & DC else (0, 0)
    made = block(names, shape, types, [*vectors, *weights], *decomposition, **header)
    for number, coded in enumerate(made.tensors):
        coded.qp_delta = 3 * number - 7
    return made


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
        data = stream(floats(sparse, (166 + 2,), cabac_unary_length_minus1=length - 1))
        yield case(f"unary_length_{length}", data, f"N = {length}", "10")
    prefixes = [sign * (10 + (1 << i)) for i in range(31) for sign in (1, -1)]
    data = stream(floats(prefixes, (len(prefixes),)))
    yield case("remainder_prefixes", data, "every length of the remainder's prefix", "10")
    every = [sign * m for m in range(1, 259) for sign in (1, -1)]
    data = stream(floats(every, (len(every),), cabac_unary_length_minus1=255))
    yield case("greater_than_contexts", data, "every greater-than context of N = 256", "9")
    for index in range(9):
        unit_ = floats(ramp(90, 11), (9, 10), dq_flag=index % 2)
        unit_.tensors[0].index = index
        text = f"initialization index {index} in all contexts"
        yield case(f"initialization_{index}", stream(unit_), text, "8")
    states = stream(floats(state_walk(), (len(state_walk()),), dq_flag=1))
    yield case("quantizer_states", states, "every state with both parities", "11")
    for cols in (4, 5, 6, 7):
        for order in (0, 1):
            unit_ = floats(ramp(20 * cols, 9), (20, cols), dq_flag=1, scan_order=order)
            unit_.tensors[0].skipped = [row % 3 == 1 for row in range(20)]
            text = f"skipped rows of {cols} columns, dq_flag 1, scan_order {order}"
            errata = ("E18",) if order else ()
            data = stream(unit_, profile=1)
            yield case(f"row_skip_{cols}_scan{order}", data, text, "9", errata=errata)


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
            book = {"codebook_egk": 2, "values": values, "zero_offset": zero}
            header = {"codebook_present_flag": 1, "codebook": book}
            data = stream(floats(v, (12, 5), **header, scan_order=profile), profile=profile)
            text = f"codebook with {kind.replace('_', ' ')}, profile {profile}"
            errata = ("E5",) if profile == 0 else ("E17",) if kind == "one_value" else ()
            yield case(f"codebook_{kind}_p{profile}", data, text, "5.2", errata=errata)
    for egk in range(16):
        book = {"codebook_egk": egk, "values": [-70000, -3, 0, 1, 40000], "zero_offset": 2}
        unit_ = floats([-2, -1, 0, 1, 2], (5,), codebook_present_flag=1, codebook=book)
        yield case(f"codebook_egk_{egk}", stream(unit_), f"codebook_egk {egk}", "5.2")
    wide = {"values": list(range(-40, 41)), "zero_offset": 40}
    header = {"codebook_present_flag": 1, "codebook": wide, "cabac_unary_length_minus1": 2}
    data = stream(floats([-40, 40, 39, -39, 0, 3, 4, 20], (8,), **header), profile=1)
    yield case("codebook_remainder", data, "a remainder that the codebook's size bounds", "10")


def parameter_sets() -> Iterator[Draft]:
    """Densities, methods, performance maps, what profile 1 adds, LPS."""
    for density in range(8):
        mps = {**MPS, "mps_qp_density": density, "mps_quantization_parameter": -5}
        unit_ = floats(ramp(12), (12,))
        unit_.density, unit_.tensors[0].qp_delta = density, -9
        yield case(f"qp_density_{density}", stream(unit_, mps=mps), f"qp_density {density}", "12")
    no_method = {"mps_quantization_method_flags": 0}
    data = stream(integers(ramp(9), (9,)), mps=no_method)
    text = "no parameter set gives a quantization parameter"
    yield case("no_quantization", data, text, "4.3", errata=("E40",))
    for methods in (2, 3):
        data = stream(floats(ramp(9), (9,)), mps={**MPS, "mps_quantization_method_flags": methods})
        text = f"mps_quantization_method_flags {methods}"
        yield case(f"quantization_method_{methods}", data, text, "4.1", errata=("E6",))
    lps = {"lps_quantization_method_flags": 1, "lps_qp_density": 2, "lps_quantization_parameter": 5}
    first, second, third = (floats(ramp(9), (9,), name) for name in "abc")
    data = stream(first, layer_parameters(**lps), second, layer_parameters(), third)
    text = "an LPS replaces the quantization parameter, and one without brings back the MPS's"
    yield case("layer_parameters", data, text, "4.3", errata=("E24", "E38"))
    maps = stream(floats(ramp(9), (9,)), profile=1, mps={**MPS, **every_map()})
    yield case(
        "performance_maps", maps, "all performance maps, with entries", "4.2", errata=("E13",)
    )
    empty = {f"mps_{kind}_flag": 1 for kind in ("sparsification", "pruning", "unification")}
    data = stream(floats(ramp(9), (9,)), mps={**MPS, **empty})
    yield case(
        "performance_maps_empty", data, "performance maps without entries", "4.2", errata=("E13",)
    )


def every_map() -> dict[str, Any]:
    """Elements of an MPS with all maps and texts."""
    flags = ("sparsification", "pruning", "unification", "decomposition_performance_map")
    accuracy = {"spm_count_classes": 2, "spm_class_bitmask": 3, "spm_nn_class_accuracy": 0.5}
    upm = {"count_reshaped_tensor_dimension": 3, "reshaped_tensor_dimension": 200}
    return {
        **{f"mps_{name}_flag": 1 for name in flags},
        "sparsification_performance_map": [accuracy, {}],
        "pruning_performance_map": [{"ppm_count_classes": 1}],
        "unification_performance_map": [
            {**upm, "count_block_dimension": 2},
            {"upm_count_classes": 1},
        ],
        "decomposition_performance_map": [{"dpm_count_classes": 300}, {}],
        "base_model_id_present_flag": 1,
        "validation_set_performance_present_flag": 1,
        "base_model_id": "a model",
        "performance_metric_type": "top-1",
    }


def other_units() -> Iterator[Draft]:
    """Topology, reference lists, quantization data, private units, sizes, order."""
    data_unit = floats(ramp(9), (9,))
    for number, name in enumerate(("unrec", "nnef", "onnx", "pyt", "tef")):
        content: Any = b"\0\1\2" if name in ("nnef", "onnx") else "net"
        unit_ = topology(topology_storage_format=number, topology_data=content)
        errata = ("E7", "E36") if content != "net" else ()
        data = stream(unit_, data_unit)
        yield case(
            f"topology_{name}", data, f"topology of format {name.upper()}", "4.4", errata=errata
        )
    deflated = topology(topology_compression_format=1, topology_data=b"\x78\x9c\x03\0\0\0\0\1")
    data = stream(deflated, data_unit)
    yield case("topology_deflated", data, "deflated topology data", "4.4", errata=("E36",))
    names = [{"topology_elem_id": name} for name in ("w", "other", "w_G", "w_H")]
    listed = topology(topology_storage_format=REFLIST, names=names)
    mps = {**MPS, "mps_topology_indexed_reference_flag": 1}
    one = floats(ramp(9), (9,), names=[{"topology_elem_id_index": 1}])
    two = layer(DC)
    two.header["names"] = [{"topology_elem_id_index": 2}, {"topology_elem_id_index": 3}]
    text = "names as indices into a reference list"
    yield case("indexed_names", stream(listed, one, two, mps=mps), text, "5.1", errata=("E8",))
    plan = UnitPlan(FLOAT, ("w_H",), (6, 30), DC, 10, 6)
    indexed = {"names": [{"topology_elem_id_index": 3}], "scan_order": 1}
    factor = DataUnit(plan, [Coded(ramp(300))], indexed)
    text = "a factor of its own with an indexed name: its shape depends on the name"
    data = stream(listed, factor, mps=mps)
    yield case("indexed_factor", data, text, "13", errata=("E8", "E9"))
    quantization = unit(NNR_QNT, b"\0\0scales\0")
    data = stream(quantization, data_unit, unit(NNR_QNT, b"\0\1\x78\x9c\0"))
    yield case("quantization_data", data, "quantization data units", "4.5", errata=("E24",))
    split = {"partial_data_counter_present_flag": 1, "partial_data_counter": 9}
    data = start() + unit(32, b"abc") + parameters() + data_unit.bytes() + unit(63, b"", **split)
    yield case("private_units", data, "private units are passed over", "2", errata=("E22",))
    long = DataUnit(data_unit.plan, data_unit.tensors, unit_header={"nnr_unit_size_flag": 1})
    yield case("unit_size_31_bits", stream(long), "nnr_unit_size of 31 bits", "2")
    dependent = {"independently_decodable_flag": 0}
    flagged = DataUnit(data_unit.plan, data_unit.tensors, unit_header=dependent)
    yield case("dependent_unit", stream(flagged), "independently_decodable_flag 0", "2")
    behind = stream(data_unit, topology())
    yield case("topology_behind", behind, "a topology unit behind the data", "2", errata=("E36",))
    yield case("no_data_units", stream(), "a stream without data units", "2", errata=("E35",))


def updates() -> Iterator[Draft]:
    """Node ids, temporal contexts, history."""
    for dq in (0, 1):
        for temporal, history in ((0, 0), (1, 0), (0, 1), (1, 1)):
            series = update_series(dq, temporal, history)
            text = f"an update with temporal contexts {temporal}, history {history}, dq_flag {dq}"
            name = f"update_t{temporal}_h{history}_dq{dq}"
            yield case(name, series[-1], text, "14", parents=series[:-1])
    for kind in (1, 2):
        series = update_series(0, 1, 0, parent_node_id_type=kind)
        text = f"a parent by digest, parent_node_id_type {kind}"
        yield case(
            f"parent_type_{kind}", series[-1], text, "14", parents=series[:-1], errata=("E1",)
        )
    series = update_series(0, 1, 1, node_id_present_flag=0)
    text = "a parent whose ids are those of the tensor, which has no node id"
    yield case("parent_ids", series[-1], text, "14", parents=series[:-1], errata=("E1", "E29"))
    every = [sign * m for m in range(1, 259) for sign in (1, -1)]
    series = wide_contexts(every)
    text = "every greater-than context where base is not 0, of N = 256"
    yield case("greater_than_base_contexts", series[-1], text, "9", parents=series[:-1])


def update_series(dq: int, temporal: int, history: int, **ids: Any) -> list[bytes]:
    """Three streams of a matrix, the second of which holds another tensor alone."""
    values = [ramp(88, 5), ramp(88, 3), ramp(88, 9)]
    first = floats(values[0], (11, 8), dq_flag=dq, node_id_present_flag=1, put_node_depth=1)
    data = stream(first, profile=1, mps=SIGNALLING)
    node = {"node_id_present_flag": 1, "parameter_id": 1, "put_node_depth": 1}
    between = stream(floats(values[1], (11, 8), "other", **node), profile=1, mps=SIGNALLING)
    q = first.q["w"]
    header = {"dq_flag": dq, "node_id_present_flag": 1, "put_node_depth": 2, **ids}
    last = floats(values[2], (11, 8), **header, parent_node_id_present_flag=1)
    last.header["temporal_context_modeling_flag"] = temporal
    last.header["scan_order"] = 1 if temporal else 0
    coded = last.tensors[0]
    coded.base = q if temporal else None
    coded.history = [x != 0 for x in q] if history else None
    return [data, between, stream(last, profile=1, mps=SIGNALLING)]


def wide_contexts(every: list[int]) -> list[bytes]:
    """An update with each magnitude twice, once over a small base and once over a large one."""
    base = [1 if m > 0 else 300 for m in every]
    node = {"node_id_present_flag": 1, "cabac_unary_length_minus1": 255}
    first = floats(base, (len(base),), **node, put_node_depth=1)
    start_ = stream(first, profile=1, mps=SIGNALLING)
    parent = {"parent_node_id_present_flag": 1, "temporal_context_modeling_flag": 1}
    last = floats(every, (len(every),), **node, **parent, put_node_depth=2)
    last.tensors[0].base = base
    return [start_, stream(last, profile=1, mps=SIGNALLING)]
