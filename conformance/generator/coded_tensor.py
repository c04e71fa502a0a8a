"""The writing of one coded tensor, after spec/bitstream.md, sections 9 to 11 and 13.

What is written is chosen by the caller: flags, initialization indices, and each integer at the
moment at which it is coded. Nothing is optimized, and nothing of nnr_codec is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .arithmetic_encoder import ArithmeticEncoder, Context
from .bits import Record
from .syntax import INT

NEXT = [(0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6)]
"""The next state for an even and an odd integer (section 11)."""

PREFIX_BINS = 31

Draw = Callable[[int, int], int]
"""Gives the integer v for a position in row-major order and the state of section 11."""


@dataclass
class TensorCoding:
    """How one tensor is coded; the names are the document's.

    `bounds` are those of the indices q with a codebook: -zero_offset and what lies above it. The
    sizes in `codebook` are 0 in profile 0, whatever the codebook (section 9). `history` is None
    for hist_dep_sig_prob_enabled_flag 0, and empty for a tensor without a past; `skipped` is None
    for row_skip_enabled_flag 0.
    """

    rows: int
    cols: int
    profile: int = 0
    scan_order: int = 0
    dq_flag: int = 0
    unary_length: int = 10
    codebook: tuple[int, int] = (0, 0)
    bounds: tuple[int, int] | None = None
    parent: bool = False
    base: Sequence[int] | None = None
    history: Sequence[bool] | None = None
    skipped: Sequence[bool] | None = None

    @property
    def is_matrix(self) -> bool:
        return self.rows > 1 and self.cols > 1

    @property
    def has_flags(self) -> bool:
        """Whether row skipping can be said."""
        return self.profile == 1 and self.is_matrix and self.codebook[0] != 1

    @property
    def side(self) -> int:
        """The side of a block; all of a matrix that is scanned row by row."""
        if self.scan_order and self.is_matrix:
            return 4 << self.scan_order
        return max(self.rows, self.cols)


def coding_of(record: Record, shape: Sequence[int], role: str, profile: int) -> TensorCoding:
    """What a unit's header says of one of its tensors, a "weight", "G", "H" or "vector"."""
    is_int = record["nnr_compressed_data_unit_payload_type"] == INT
    coding = TensorCoding(
        rows=shape[0],
        cols=math.prod(shape[1:]),
        profile=profile,
        scan_order=min(record.get("scan_order", 0), 4),
        dq_flag=0 if is_int else record.get("dq_flag", 0),
        unary_length=record.get("cabac_unary_length_minus1", 9) + 1,
        parent=bool(record.get("parent_node_id_present_flag")),
    )
    if record.get("codebook_present_flag") and role != "vector":
        book = record["codebook_h" if role == "H" else "codebook"]
        size, zero = len(book["values"]), book["zero_offset"]
        coding.bounds = (-zero, size - 1 - zero)
        coding.codebook = (size, zero) if profile == 1 else (0, 0)
    return coding


def quantizer_index(v: int, state: int) -> int:
    """Return q of section 11."""
    sign = (v > 0) - (v < 0)
    return 2 * v - sign * (state % 2)


def write_tensor(
    encoder: ArithmeticEncoder, coding: TensorCoding, index: Callable[[int], int], draw: Draw
) -> list[int]:
    """Write the tensor; return its indices q in row-major order.

    `index` gives the initialization index, 0 to 8, of each context by its number.
    """
    writer = _TensorWriter(encoder, coding, draw)
    writer.flags()
    writer.initialization(index)
    writer.scan()
    return writer.q


class _TensorWriter:
    def __init__(self, encoder: ArithmeticEncoder, coding: TensorCoding, draw: Draw) -> None:
        self.encoder, self.coding, self.draw = encoder, coding, draw
        self.contexts = [Context() for _ in range(53 + 4 * coding.unary_length + PREFIX_BINS)]
        self.q = [0] * (coding.rows * coding.cols)
        self.state = self.left = 0

    def flags(self) -> None:
        """Step 1 of section 9."""
        coding, encoder = self.coding, self.encoder
        if not coding.has_flags:
            return
        if coding.parent:
            encoder.bypass(int(coding.history is not None), 1)
        encoder.bypass(int(coding.skipped is not None), 1)
        context = Context()
        for skipped in coding.skipped or ():
            encoder.bin(context, int(skipped))

    def initialization(self, index: Callable[[int], int]) -> None:
        """Step 2 of section 9."""
        flag = Context()
        for number in used_contexts(self.coding):
            e = index(number)
            self.encoder.bin(flag, int(e > 0))
            if e:
                self.encoder.bypass(e - 1, 3)
                self.contexts[number].set(e)

    def scan(self) -> None:
        """Step 3 of section 9, in the order of section 13."""
        coding, side = self.coding, self.coding.side
        if coding.rows > side:
            self.encoder.begin_block_row(0, first=True)
        for top in range(0, coding.rows, side):
            if top:
                self.left = 0
                for context in self.contexts:
                    context.set(context.index)
                self.encoder.begin_block_row(self.state if coding.dq_flag else 0, first=False)
            if coding.codebook[0] == 1:
                continue
            for first in range(0, coding.cols, side):
                for row in range(top, min(top + side, coding.rows)):
                    self.row(row, range(first, min(first + side, coding.cols)))

    def row(self, row: int, columns: range) -> None:
        """The part of a row that lies in one block."""
        coding = self.coding
        if coding.skipped and coding.skipped[row]:
            for _ in range(coding.cols if coding.dq_flag else 0):
                self.state = NEXT[self.state][0]
            return
        for column in columns:
            position = row * coding.cols + column
            v = self.draw(position, self.state)
            self.integer(v, position)
            self.q[position] = quantizer_index(v, self.state) if coding.dq_flag else v
            self.left = 0 if v == 0 else 1 if v < 0 else 2
            if coding.dq_flag:
                self.state = NEXT[self.state][v % 2]

    def integer(self, v: int, position: int) -> None:
        """Section 10."""
        coding = self.coding
        base = coding.base[position] if coding.base else 0
        past = bool(coding.history and coding.history[position])
        self.bin(significance_context(self.state, self.left, base, past), v != 0)
        if v == 0:
            return
        cs, zo = coding.codebook
        if not (cs and zo in (0, cs - 1)):
            self.bin(51 + (base > 0) if base else 48 + self.left, v < 0)
        largest = (zo if v < 0 else cs - 1 - zo) if cs else None
        self.magnitude(abs(v), int(v < 0), base, largest)

    def magnitude(self, size: int, negative: int, base: int, largest: int | None) -> None:
        """Greater-than bins and remainder."""
        n = self.coding.unary_length
        m = 1
        while m <= n and (largest is None or m < largest):
            j = m - 1
            context = 53 + 2 * n + 2 * j + (abs(base) < j) if base else 53 + 2 * j + negative
            self.bin(context, size > m)
            if size == m:
                return
            m += 1
        if largest is None or m < largest:
            self.remainder(size - m, None if largest is None else largest - m)

    def remainder(self, r: int, largest: int | None) -> None:
        """The prefix, whose bins have contexts, and the suffix."""
        low = i = 0
        while i < PREFIX_BINS and (largest is None or low + (1 << i) <= largest):
            more = r >= low + (1 << i)
            self.bin(53 + 4 * self.coding.unary_length + i, more)
            if not more:
                break
            low += 1 << i
            i += 1
        self.encoder.bypass(r - low, i)

    def bin(self, context: int, value: int) -> None:
        self.encoder.bin(self.contexts[context], int(value))


def significance_context(state: int, left: int, base: int, past: bool) -> int:
    """The first rows of the table in section 9."""
    if past:
        return 40 + state
    if base:
        return 24 + 2 * state + (abs(base) > 1)
    return 3 * state + left


def used_contexts(coding: TensorCoding) -> Iterator[int]:
    """The contexts that have an initialization index, in order."""
    (cs, zo), n = coding.codebook, coding.unary_length
    states, temporal = (8 if coding.dq_flag else 1), coding.base is not None
    m = max(zo, cs - 1 - zo)
    if cs != 1:
        yield from range(3 * states)
        if temporal:
            yield from range(24, 24 + 2 * states)
        if coding.history is not None:
            yield from range(40, 40 + states)
        if not cs or zo not in (0, cs - 1):
            yield from range(48, 53 if temporal else 51)
    yield from (53 + a for a in range(2 * n) if cs == 0 or a < 2 * m)
    if temporal:
        yield from (53 + 2 * n + a for a in range(2 * n) if cs == 0 or a < 2 * (m - 1))
    for i in range(PREFIX_BINS):
        if cs == 0 or n - 2 + 2 ** (i + 1) < m:
            yield 53 + 4 * n + i
