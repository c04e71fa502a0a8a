"""Sets of ranges against sets of numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnr_codec.remote.byte_ranges import ByteRanges, Range, joined

SIZE = 24
ranges = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE))


@given(st.lists(ranges, max_size=8), ranges)
def test_like_a_set_of_numbers(added: list[Range], asked: Range) -> None:
    found = ByteRanges(added)
    numbers = {n for start, stop in added for n in range(start, stop)}
    assert {n for start, stop in found for n in range(start, stop)} == numbers
    assert found.byte_count == len(numbers)
    missing = [n for n in range(*asked) if n not in numbers]
    assert [n for start, stop in found.gaps(*asked) for n in range(start, stop)] == missing
    assert (found.first_gap(*asked) is None) == (not missing)


@given(st.lists(ranges, max_size=8))
def test_ranges_are_in_order_and_apart(added: list[Range]) -> None:
    edges = [edge for pair in ByteRanges(added) for edge in pair]
    assert edges == sorted(set(edges))


@pytest.mark.parametrize(
    ("given_ranges", "expected"),
    [
        ([(0, 5), (5, 9)], [(0, 9)]),
        ([(0, 5), (7, 9)], [(0, 9)]),  # a gap of two is bridged
        ([(0, 5), (8, 9)], [(0, 5), (8, 9)]),
        ([(7, 9), (0, 5)], [(7, 9), (0, 5)]),  # the order stays
        ([(0, 5), (3, 4), (3, 3)], [(0, 5)]),
        ([], []),
    ],
)
def test_joined(given_ranges: list[Range], expected: list[Range]) -> None:
    assert joined(given_ranges, 2) == expected
