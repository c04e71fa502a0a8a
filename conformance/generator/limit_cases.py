"""Cases made by hand at the limits, of two kinds, and those of the points of spec/errata.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .building import MPS, Coded, DataUnit, block, floats, integers, ramp, stream, topology
from .feature_cases import Draft, case
from .random_tensors import UnitPlan
from .syntax import DC, FLOAT

LARGEST = (1 << 31) - 1


def limit_cases() -> Iterator[Draft]:
    """All of "limits": what is allowed at the very edge, and what asks for too much."""
    for group in (edges, bombs):
        for name, files in group():
            yield f"limits/{name}", files


def edges() -> Iterator[Draft]:
    """Extremes that have to be decoded."""
    values = [LARGEST, -LARGEST, 1 << 30, -(1 << 24) - 1, 1, 0]
    yield case("integers_32_bits", stream(floats(values, (6,))), "integers of 32 bits", "10")
    for name, qp, what in (
        ("least", -126 * 4, "the least step, 2^-126"),
        ("greatest", 127 * 4 + 3, "the greatest step, with which products are infinite"),
    ):
        mps = {**MPS, "mps_quantization_parameter": qp}
        yield case(f"step_{name}", stream(floats([1, -1, 3, 0], (4,)), mps=mps), what, "12")
    ends = (("negative", -128), ("positive", 127))
    for name, delta in ends:
        unit = floats(ramp(9), (9,))
        unit.tensors[0].qp_delta = delta
        yield case(f"qp_delta_{name}", stream(unit), f"qp_delta {delta}", "6")
    book = {"values": [-(1 << 31), 0, LARGEST], "zero_offset": 1}
    data = stream(floats([-1, 1, 0], (3,), codebook_present_flag=1, codebook=book))
    yield case("codebook_32_bits", data, "codebook values of 32 bits", "5.2", errata=("E19",))
    data = stream(floats([1, 2], (1,) * 31 + (2,)))
    yield case("dimensions_32", data, "32 dimensions, as many as arrays of numpy 1 have", "6")


def bombs() -> Iterator[Draft]:
    """Valid or nearly so, but larger than any decoder has to bear."""
    book = {"codebook_present_flag": 1, "codebook": {"values": [5], "zero_offset": 0}}
    huge = floats([0], (1,), **book, tensor_dimensions=[1 << 20, 1 << 20])
    text = "2^40 elements, of which none is coded: a codebook of one value"
    yield case("one_value_2_40", stream(huge, profile=1), text, "15", error="limit")
    many = floats([0], (1,), tensor_dimensions=[1 << 30, 1 << 30, 1 << 30])
    yield case(
        "elements_2_90", stream(many), "dimensions whose product is 2^90", "15", error="limit"
    )
    flat = floats([0], (1,), tensor_dimensions=[1] * 3000)
    yield case("dimensions_3000", stream(flat), "3000 dimensions", "15", error="limit")
    plan = UnitPlan(FLOAT, ("w_G",), (1 << 16, 1 << 16), DC, (1 << 31) - 1, 1 << 16)
    factor = DataUnit(plan, [Coded([0])], payload=b"\0\0")
    factor.plan = UnitPlan(FLOAT, ("w_G",), (1,), DC, 1, 1)
    factor.header = {"decomposition_rank": (1 << 31) - 1, "g_number_of_rows": 1 << 16}
    text = "a factor of 2^47 elements"
    yield case("rank_2_31", stream(factor), text, "15", error="limit")
    past = floats([-(1 << 32), 1 << 31], (2,))
    text = "integers beyond 32 bits, which the binarization reaches"
    data = stream(past)
    yield case("integers_33_bits", data, text, "10", errata=("E34",), error="invalid")


def issue_cases() -> Iterator[Draft]:
    """All of "issues": points of spec/errata.md and defects that were found in decoders."""
    for group in (open_points, found_defects):
        for name, files in group():
            yield f"issues/{name}", files


def open_points() -> Iterator[Draft]:
    """Points of spec/errata.md that a stream can show."""
    entries = {n: {"value8": 0, "dq_state": 0, "offset": 0} for n in range(4)}
    column = floats(ramp(40), (40, 1), scan_order=1)
    column.entries = entries
    text = "entry points of a matrix of one column, which say nothing"
    yield case("e02_one_column", stream(column), text, "13", errata=("E2",))
    for profile in (0, 1):
        book = {"values": list(range(-9, 20, 2)), "zero_offset": 5}
        header = {"codebook_present_flag": 1, "codebook": book, "dq_flag": 1}
        v = [max(-2, min(x, 4)) for x in ramp(60, 9)]
        data = stream(floats(v, (12, 5), **header), profile=profile)
        text = f"a codebook with dq_flag 1: its index is q, profile {profile}"
        yield case(f"e04_codebook_dq_p{profile}", data, text, "11", errata=("E4",))
    book = {"values": [7], "zero_offset": 0}
    header = {"codebook_present_flag": 1, "codebook": book, "scan_order": 1}
    constant = floats([0] * 240, (20, 12), **header)
    text = "a codebook of one value in several block rows"
    yield case("e17_one_value_block_rows", stream(constant, profile=1), text, "13", errata=("E17",))
    book = {"values": [0, (1 << 24) + 1, (1 << 24) + 3], "zero_offset": 0}
    unit = floats([0, 1, 2], (3,), codebook_present_flag=1, codebook=book)
    unit.tensors[0].qp_delta = 3
    text = "codebook values that binary32 cannot hold: one rounding, behind the product"
    yield case("e19_codebook_rounding", stream(unit), text, "12", errata=("E19",))
    yield from products()
    flagged = integers(ramp(60, 9), (12, 5), dq_flag=1)
    text = "dq_flag 1 in an INT unit is ignored"
    yield case("e30_integers_dq_flag", stream(flagged), text, "12", errata=("E30",))
    # In an odd state 2^30 stands for the index 2^31 - 1, though its double exceeds 32 bits.
    doubled = floats([1, 1, 1 << 30, 0, -(1 << 30)], (5,), dq_flag=1)
    text = "an index of 32 bits whose integer cannot be doubled in 32 bits"
    yield case("e34_doubling", stream(doubled), text, "11", errata=("E34",))
    types = floats(ramp(9), (9,), compressed_parameter_types=14)
    text = "parameter types of a layer in a FLOAT unit"
    yield case("e28_parameter_types", stream(types), text, "5", errata=("E28",))
    blob = topology(topology_data='{"a": 1}'), topology(topology_data="again")
    yield case("e36_two_topologies", stream(*blob, floats([1], (1,))), "two topology units", "4.4")


def products() -> Iterator[Draft]:
    """Decomposed weights whose product depends on how it is made."""
    big = [LARGEST, 1, -LARGEST]
    data = stream(product(big, [LARGEST, 1, LARGEST], 1))
    text = "a product of factors whose sum depends on its order"
    yield case("e20_order_of_summation", data, text, "12", errata=("E20",))
    rounded = product([(1 << 23) + 1, 3], [7, 5], 2, delta=3)
    text = "factors that are rounded to binary32 before they are multiplied"
    yield case("e20_rounded_factors", stream(rounded), text, "12", errata=("E20",))
    for number, name in ((8, "float16"), (9, "float64")):
        header = {"nnr_decompressed_data_format_present_flag": 1}
        unit = product([2049, 1], [3, 1], 2, nnr_decompressed_data_format=number, **header)
        text = f"the product of factors in {name.upper()}"
        yield case(f"e37_product_{name}", stream(unit), text, "12", errata=("E11", "E37"))


def product(g: list[int], h: list[int], rows: int, delta: int = 0, **header: Any) -> DataUnit:
    """A BLOCK of the factors alone."""
    rank = len(g) // rows
    made = block(["w_G", "w_H"], (rows, len(h) // rank), DC, [g, h], rank, rows, **header)
    for coded in made.tensors:
        coded.qp_delta = delta
    return made


def found_defects() -> Iterator[Draft]:
    """What a decoder of this project once had wrong, and no other case here shows."""
    zeros = product([-1, 1], [0, 1], 2)
    text = "no -0 from a product: sums begin with 0"
    yield case("product_zero_sign", stream(zeros), text, "12", errata=("E20",))
