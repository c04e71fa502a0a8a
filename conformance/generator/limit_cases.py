"""Cases made by hand at the limits, of two kinds, and those of the points of spec/errata.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .building import (
    Coded,
    DataUnit,
    block,
    floats,
    integers,
    ramp,
    stream,
    topology,
    with_codebook,
    with_format,
)
from .feature_cases import Draft, case, category
from .random_tensors import LARGEST, UnitPlan
from .syntax import DC, FLOAT


def limit_cases() -> Iterator[Draft]:
    return category("limits", edges(), bombs())


def edges() -> Iterator[Draft]:
    """Extremes that have to be decoded."""
    values = [LARGEST, -LARGEST, 1 << 30, -(1 << 24) - 1, 1, 0]
    yield case("integers_32_bits", floats(values, (6,)), "integers of 32 bits", "10")
    for name, qp, what in (
        ("least", -126 * 4, "the least step, 2^-126"),
        ("greatest", 127 * 4 + 3, "the greatest step, with which products are infinite"),
    ):
        data = stream(floats([1, -1, 3, 0], (4,)), mps_quantization_parameter=qp)
        yield case(f"step_{name}", data, what, "12")
    for name, delta in (("negative", -128), ("positive", 127)):
        unit = floats(Coded(ramp(9), qp_delta=delta), (9,))
        yield case(f"qp_delta_{name}", unit, f"qp_delta {delta}", "6")
    unit = floats([-1, 1, 0], (3,), **with_codebook([-(1 << 31), 0, LARGEST], 1))
    yield case("codebook_32_bits", unit, "codebook values of 32 bits", "5.2", "E19")
    unit = floats([1, 2], (1,) * 31 + (2,))
    yield case("dimensions_32", unit, "32 dimensions, as many as arrays of numpy 1 have", "6")


def bombs() -> Iterator[Draft]:
    """Valid or nearly so, but larger than any decoder has to bear."""
    huge = floats([0], (1,), **with_codebook([5], 0), tensor_dimensions=[1 << 20, 1 << 20])
    text = "2^40 elements, of which none is coded: a codebook of one value"
    yield case("one_value_2_40", stream(huge, profile=1), text, "15", error="limit")
    many = floats([0], (1,), tensor_dimensions=[1 << 30, 1 << 30, 1 << 30])
    yield case("elements_2_90", many, "dimensions whose product is 2^90", "15", error="limit")
    flat = floats([0], (1,), tensor_dimensions=[1] * 3000)
    yield case("dimensions_3000", flat, "3000 dimensions", "15", error="limit")
    header = {"decomposition_rank": LARGEST, "g_number_of_rows": 1 << 16}
    plan = UnitPlan(FLOAT, ("w_G",), (1,), DC, 1, 1)
    factor = DataUnit(plan, [[0]], header, payload=b"\0\0")
    yield case("rank_2_31", factor, "a factor of 2^47 elements", "15", error="limit")
    past = floats([-(1 << 32), 1 << 31], (2,))
    text = "integers beyond 32 bits, which the binarization reaches"
    yield case("integers_33_bits", past, text, "10", "E34", error="invalid")


def issue_cases() -> Iterator[Draft]:
    return category("issues", open_points(), products())


def open_points() -> Iterator[Draft]:
    """Points of spec/errata.md that a stream can show."""
    entries = {n: {"value8": 0, "dq_state": 0, "offset": 0} for n in range(4)}
    column = replace(floats(ramp(40), (40, 1), scan_order=1), entries=entries)
    text = "entry points of a matrix of one column, which say nothing"
    yield case("e02_one_column", column, text, "13", "E2")
    for profile in (0, 1):
        book = with_codebook(list(range(-9, 20, 2)), 5)
        v = [max(-2, min(x, 4)) for x in ramp(60, 9)]
        data = stream(floats(v, (12, 5), **book, dq_flag=1), profile=profile)
        text = f"a codebook with dq_flag 1: its index is q, profile {profile}"
        yield case(f"e04_codebook_dq_p{profile}", data, text, "11", "E4")
    constant = floats([0] * 240, (20, 12), **with_codebook([7], 0), scan_order=1)
    text = "a codebook of one value in several block rows"
    yield case("e17_one_value_block_rows", stream(constant, profile=1), text, "13", "E17")
    book = with_codebook([0, (1 << 24) + 1, (1 << 24) + 3], 0)
    unit = floats(Coded([0, 1, 2], qp_delta=3), (3,), **book)
    text = "codebook values that binary32 cannot hold: one rounding, behind the product"
    yield case("e19_codebook_rounding", unit, text, "12", "E19")
    flagged = integers(ramp(60, 9), (12, 5), dq_flag=1)
    yield case("e30_integers_dq_flag", flagged, "dq_flag 1 in an INT unit is ignored", "12", "E30")
    # In an odd state 2^30 stands for the index 2^31 - 1, though its double exceeds 32 bits.
    doubled = floats([1, 1, 1 << 30, 0, -(1 << 30)], (5,), dq_flag=1)
    text = "an index of 32 bits whose integer cannot be doubled in 32 bits"
    yield case("e34_doubling", doubled, text, "11", "E34")
    types = floats(ramp(9), (9,), compressed_parameter_types=14)
    text = "parameter types of a layer in a FLOAT unit"
    yield case("e28_parameter_types", types, text, "5", "E28")
    blob = topology(topology_data='{"a": 1}'), topology(topology_data="again")
    yield case("e36_two_topologies", stream(*blob, floats([1], (1,))), "two topology units", "4.4")


def products() -> Iterator[Draft]:
    """Decomposed weights whose product depends on how it is made, or was once made wrong here."""
    zeros = product([-1, 1], [0, 1], 2)
    text = "no -0 from a product: sums begin with 0"
    yield case("product_zero_sign", zeros, text, "12", "E20")
    unit = product([LARGEST, 1, -LARGEST], [LARGEST, 1, LARGEST], 1)
    text = "a product of factors whose sum depends on its order"
    yield case("e20_order_of_summation", unit, text, "12", "E20")
    unit = product([(1 << 23) + 1, 3], [7, 5], 2, delta=3)
    text = "factors that are rounded to binary32 before they are multiplied"
    yield case("e20_rounded_factors", unit, text, "12", "E20")
    for number, name in ((8, "float16"), (9, "float64")):
        unit = product([2049, 1], [3, 1], 2, **with_format(number))
        text = f"the product of factors in {name.upper()}"
        yield case(f"e37_product_{name}", unit, text, "12", "E11", "E37")


def product(g: list[int], h: list[int], rows: int, delta: int = 0, **header: Any) -> DataUnit:
    """A BLOCK of the factors alone."""
    rank = len(g) // rows
    factors = [Coded(v, qp_delta=delta) for v in (g, h)]
    return block(["w_G", "w_H"], (rows, len(h) // rank), DC, factors, rank, rows, **header)
