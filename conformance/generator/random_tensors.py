"""Random data units: a plan that a series keeps, and a unit of it with random contents."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .arithmetic_encoder import ArithmeticEncoder
from .bits import Record
from .coded_tensor import TensorCoding, coding_of, quantizer_index, write_tensor
from .random_headers import Draws, codebook
from .syntax import (
    BI,
    BLOCK,
    BN,
    DC,
    FLOAT,
    INT,
    LS,
    NNR_NDU,
    RAW_FLOAT,
    named,
    unit_of,
    weight_shapes,
)

INTEGER_BITS = {None: 32, 0: 32, 2: 2, 3: 3, 4: 4, 5: 8, 6: 16, 7: 32}
"""Of nnr_decompressed_data_format; more than 32 bits are never drawn (E34)."""

LARGEST = (1 << 31) - 1


@dataclass(frozen=True)
class UnitPlan:
    """What a data unit is in every stream of its series; names in the order of the header."""

    payload: int
    names: tuple[str, ...]
    dimensions: tuple[int, ...]
    types: int = 0
    rank: int = 0
    g_rows: int = 0

    def coded(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and role of each tensor in the order of the payload (section 6)."""
        shapes = weight_shapes(self.record())
        if self.payload != BLOCK:
            return [(self.names[0], shapes[0], "weight")]
        roles = ("G", "H") if len(shapes) == 2 else ("weight",)
        names = iter(self.names)
        weights = [(next(names), *rest) for rest in zip(shapes, roles, strict=True)]
        scaling = [next(names)] if self.types & LS else []
        norm = [next(names) for _ in range(4 if self.types & BN else 0)]
        vectors = [(name, self.dimensions[:1], "vector") for name in [*scaling, *names, *norm]]
        return vectors + weights

    def record(self) -> Record:
        """The elements of the header that follow from the plan."""
        return {
            "nnr_compressed_data_unit_payload_type": self.payload,
            "names": named(*self.names),
            "compressed_parameter_types": self.types,
            "decomposition_rank": self.rank,
            "g_number_of_rows": self.g_rows,
            "tensor_dimensions": list(self.dimensions),
        }


@dataclass
class Past:
    """What the earlier streams of a series left of one tensor: q, and where any q was not 0."""

    latest: list[int]
    seen: list[bool]
    occurrences: int = 1


@dataclass
class StreamState:
    """What holds while the data units of one stream are made."""

    profile: int
    mps: Record
    density: int
    parameter: int
    common: bool
    past: dict[str, Past] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)  # parameter_id by first name
    reference_list: list[str] = field(default_factory=list)
    integers: dict[str, list[int]] = field(default_factory=dict)


def plan(d: Draws, stem: str, common: bool) -> UnitPlan:
    """A unit of a random kind and shape."""
    payload = d.of(INT, FLOAT, FLOAT, RAW_FLOAT, BLOCK, BLOCK)
    dimensions = shape(d)
    if payload == BLOCK:
        return block_plan(d, stem, dimensions, common)
    types = d.of(0, 0, d.below(8) * 2)
    if payload == FLOAT and not common and d.chance(0.2):
        dimensions = (d.between(2, 12), d.between(2, 6))
        names = (stem + d.of("_G", "_H"),)
        return UnitPlan(FLOAT, names, dimensions, DC, d.between(1, 9), dimensions[0])
    return UnitPlan(payload, (stem,), dimensions, types)


def shape(d: Draws) -> tuple[int, ...]:
    """Few elements, but in all proportions: vectors, rows, columns, several block rows."""
    kind = d.below(8)
    if kind == 0:
        return (d.between(1, 40),)
    if kind == 1:
        return d.of((1, d.between(2, 20)), (d.between(2, 40), 1))
    if kind < 5:
        return (d.between(9, 40), d.between(2, 20))
    if kind == 5:
        return d.of((66, 5), (34, 33), (3, 70))
    return (d.between(2, 12), d.between(1, 4), d.of(1, 3), d.of(1, 3))[: d.between(3, 4)]


def block_plan(d: Draws, stem: str, dimensions: tuple[int, ...], common: bool) -> UnitPlan:
    """Any combination of the tensors that a layer can have."""
    types = d.between(1, 7) * 2 if common else d.between(1, 15)
    rank, g_rows = (d.of(1, 2, 3, 10), dimensions[0]) if types & DC else (0, 0)
    names = block_names(types, f"{stem}.w", stem, f"{stem}.bn")
    return UnitPlan(BLOCK, tuple(names), dimensions, types, rank, g_rows)


def block_names(types: int, weight: str, stem: str, norm: str) -> list[str]:
    """The names of a BLOCK's tensors; `norm` comes before those of batch norm."""
    names = [f"{weight}_G", f"{weight}_H"] if types & DC else [weight]
    names += [f"{stem}.scaling"] if types & LS else []
    names += [f"{norm}.{part}" for part in ("beta", "gamma", "mean", "var")] if types & BN else []
    return names + ([f"{stem}.bias"] if types & BI else [])


def data_unit(d: Draws, p: UnitPlan, state: StreamState) -> bytes:
    """A unit of the plan; its integers are added to the state."""
    record = p.record()
    for entry in record["names"] if state.reference_list else ():
        entry["topology_elem_id_index"] = state.reference_list.index(entry["topology_elem_id"])
    choose_header(d, p, state, record)
    if p.payload == RAW_FLOAT:
        numbers = [d.of(0.0, -0.0, d.number()) for _ in range(math.prod(p.dimensions))]
        payload = struct.pack(f"<{len(numbers)}f", *numbers)
    else:
        payload = codeword(d, p, state, record)
    header = {"nnr_unit_size_flag": 1} if d.chance(0.1) else {}
    header["independently_decodable_flag"] = d.below(2)
    return unit_of(NNR_NDU, record, state.profile, state.mps, payload=payload, **header)


def choose_header(d: Draws, p: UnitPlan, state: StreamState, record: Record) -> None:
    """The elements that are free."""
    if d.chance(0.8):
        record["cabac_unary_length_minus1"] = d.of(0, 1, 2, 4, 9, 15, d.below(256))
    if len(p.dimensions) > 1 and p.payload != RAW_FLOAT:
        record["scan_order"] = d.of(0, 1, 1, 2, 3, 4)
    if p.payload != RAW_FLOAT:
        record["dq_flag"] = d.below(2) if p.payload != INT else d.of(0, 0, 1)
    if p.payload in (FLOAT, BLOCK) and d.chance(0.3):
        record["codebook_present_flag"] = 1
        record["codebook"], record["codebook_h"] = codebook(d), codebook(d)
    if not state.common and d.chance(0.4):
        record["nnr_decompressed_data_format_present_flag"] = 1
        formats = (0, 2, 3, 4, 5, 6, 7) if p.payload == INT else (1, 8, 9)
        record["nnr_decompressed_data_format"] = d.of(*formats)
    if state.profile == 1:
        choose_ids(d, p, state, record)


def choose_ids(d: Draws, p: UnitPlan, state: StreamState, record: Record) -> None:
    """Node ids, and a parent where the series has one."""
    name = p.names[0]
    record["node_id_present_flag"] = 1 if state.common else d.below(2)
    record["parameter_id"] = state.numbers.setdefault(name, len(state.numbers))
    before = state.past.get(name)
    record["put_node_depth"] = before.occurrences + 1 if before else 1
    if not state.mps["mps_parent_signalling_enabled_flag"] or before is None:
        return
    record["parent_node_id_present_flag"] = int(d.chance(0.85))
    if record["parent_node_id_present_flag"]:
        record["parent_node_id_type"] = d.of(0, 0, 1, 2)
        record["temporal_context_modeling_flag"] = int(p.payload != RAW_FLOAT and d.chance(0.7))
        record["parent_node_payload_sha256"] = d.bits(256)
        record["parent_node_payload_sha512"] = d.bits(512)


def codeword(d: Draws, p: UnitPlan, state: StreamState, record: Record) -> bytes:
    """The payload, and the entry points in the record."""
    encoder = ArithmeticEncoder()
    counts = []
    decomposed = p.payload == BLOCK and bool(p.types & DC)
    for name, dimensions, role in p.coded():
        coding = choose_coding(d, name, dimensions, role, state, record)
        if p.payload != INT:
            encoder.bypass(choose_qp_delta(d, state, decomposed), 6 + state.density)
        indices = choose_initialization(d)
        draw = choose_integers(d, coding, p.payload, record, decomposed)
        state.integers[name] = write_tensor(encoder, coding, indices, draw)
        if role != "vector" and record.get("scan_order"):
            side = 4 << record["scan_order"]
            silent = coding.cols == 1  # such entries are there, but say nothing (E2)
            counts.append(((coding.rows + side - 1) // side - 1, silent))
    word = encoder.finish()
    entries = encoder.entry_points(word)
    nothing = {"value8": 0, "dq_state": 0, "offset": 0}
    record["entry_points"] = [
        dict(nothing) if silent else entries.pop(0)
        for count, silent in counts
        for _ in range(count)
    ]
    return word


def choose_coding(
    d: Draws, name: str, dimensions: Sequence[int], role: str, state: StreamState, record: Record
) -> TensorCoding:
    """How one tensor of a unit is coded."""
    coding = coding_of(record, dimensions, role, state.profile)
    past = state.past.get(name)
    if record.get("temporal_context_modeling_flag"):
        coding.base = past.latest if past else []
    if coding.parent and coding.has_flags and d.chance(0.6):
        coding.history = past.seen if past else []
    if coding.has_flags and d.chance(0.3):
        coding.skipped = [d.chance(0.4) for _ in range(coding.rows)]
    return coding


def choose_qp_delta(d: Draws, state: StreamState, decomposed: bool) -> int:
    """A qp_delta with which the step is a normal number; of factors, one of moderate size."""
    half = 1 << (5 + state.density)
    least, most = (-126, 127) if not decomposed and d.chance(0.1) else (-24, 8)
    first = max(-half, (least << state.density) - state.parameter)
    last = min(half - 1, (most + 1 << state.density) - 1 - state.parameter)
    return d.of(first, last, d.between(first, last)) if least == -126 else d.between(first, last)


def choose_initialization(d: Draws) -> Callable[[int], int]:
    """Initialization indices: all 0, all the same, or any."""
    kind, same = d.below(3), d.below(9)
    return lambda _: (0, same, d.below(9))[kind]


def choose_integers(
    d: Draws, coding: TensorCoding, payload: int, record: Record, decomposed: bool
) -> Callable[[int, int], int]:
    """Integers of a random spread, near the parent's now and then, inside all bounds."""
    zeros = d.of(0.0, 0.3, 0.8)
    spread = d.of(0.7, 1.5, 1.5, 4, 4, 12, 0.4 * coding.unary_length, 300)
    largest = (1 << 20) - 1 if decomposed else LARGEST
    lower, upper = coding.bounds or (-largest, largest)
    if payload == INT:
        bits = INTEGER_BITS[record.get("nnr_decompressed_data_format")]
        lower, upper = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    extremes = d.chance(0.15)

    def draw(position: int, state: int) -> int:
        v = 0 if d.chance(zeros) else d.laplace(spread)
        if extremes and d.chance(0.1):
            v = d.of(-1, 1) * d.of(1 << d.below(31), largest)
        if coding.base and d.chance(0.3):
            v = coding.base[position] // (1 + coding.dq_flag)
        while not lower <= (quantizer_index(v, state) if coding.dq_flag else v) <= upper:
            v = int(v / 2)
        return v

    return draw
