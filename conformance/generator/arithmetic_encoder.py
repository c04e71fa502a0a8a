"""An arithmetic encoder after spec/bitstream.md, 8 and 16: plain, and apart from the codec's.

It puts into a codeword the bins and contexts that it is told, whatever they mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field

STEP = [
    *(2512, 2288, 2064, 1840, 1616, 1392, 1168, 944, 720, 560, 464, 368, 272, 208, 144, 80),
    *([64] * 15),
    0,
]

RLPS = [
    [int(entry) for entry in row.split()]
    for row in """\
128 112 97 84 74 65 57 50 45 39 34 30 27 23 20 18 15 14 12 11 10 9 7 7 5 5 4 4 3 3 2 2
142 125 108 93 82 72 63 56 50 43 38 33 30 26 22 20 17 16 13 12 11 10 8 8 6 6 5 5 3 3 2 2
156 137 119 103 90 79 70 61 55 48 42 37 33 28 24 22 19 17 15 13 12 11 9 9 6 6 5 5 4 4 2 2
171 150 130 112 99 87 76 67 60 52 46 40 36 31 27 24 21 19 16 15 13 12 10 10 7 7 6 6 4 4 3 3
185 162 141 121 107 94 82 73 65 56 50 43 39 34 29 26 22 21 17 16 14 13 11 11 8 8 6 6 4 4 3 3
199 175 152 131 115 101 89 78 70 61 54 47 42 36 31 28 24 22 19 17 15 14 12 12 8 8 7 7 5 5 3 3
213 187 163 140 123 108 95 84 75 65 58 50 45 39 33 30 26 24 20 18 16 15 13 13 9 9 7 7 5 5 3 3
228 200 174 150 132 116 102 90 80 70 62 54 48 42 36 32 28 26 22 20 18 16 14 14 10 10 8 8 6 6 4 4
""".splitlines()
]

INITIALIZATION = [
    (5, 4, 0, 0),
    (5, 4, -1310, -41),
    (5, 4, 3039, 95),
    (4, 5, 0, 0),
    (6, 6, 962, 30),
    (6, 6, 3039, 95),
    (6, 6, -673, -21),
    (7, 5, 0, 0),
    (7, 5, 962, 30),
]
"""For each initialization index: shifts a and b, S, s0."""


class Context:
    """A probability model (section 8)."""

    def __init__(self) -> None:
        self.set(0)

    def set(self, index: int) -> None:
        """Start from initialization index 0 to 8."""
        self.index = index
        self.a, self.b, total, self.s0 = INITIALIZATION[index]
        self.s1 = total - 16 * self.s0

    def interval(self, interval: int) -> tuple[int, int]:
        """Return mps, and the part of the range that the other value has."""
        total = 16 * self.s0 + self.s1
        return int(total >= 0), RLPS[(interval >> 5) % 8][abs(total >> 7)]

    def update(self, value: int) -> None:
        """Move both estimators towards the bin's value."""
        d = 1 if value else -1
        fast, slow = STEP[16 + (d * self.s0 >> 3)], STEP[16 + (d * self.s1 >> 7)]
        self.s0 += d * (fast >> self.a)
        self.s1 += d * (slow >> self.b)


@dataclass
class BlockRowStart:
    """The encoder as a block row begins: what an entry point is made of."""

    position: int
    low: int
    dq_state: int
    first: bool  # of its tensor: it has no entry


@dataclass
class ArithmeticEncoder:
    """One codeword.

    Attributes:
        position: P of section 13: shifts since the start.
        starts: the beginnings of block rows, noted by `begin_block_row`.
    """

    low: int = 0
    range: int = 510
    position: int = 0
    starts: list[BlockRowStart] = field(default_factory=list)

    def bin(self, context: Context, value: int) -> None:
        """A context-coded bin."""
        mps, rlps = context.interval(self.range)
        rmps = self.range - rlps
        if value == mps:
            self.range = rmps
        else:
            self.low += rmps
            self.range = rlps
        while self.range < 256:
            self.range *= 2
            self._shift(1)
        context.update(value)

    def bypass(self, value: int, bins: int) -> None:
        """A number of `bins` bypass bins."""
        for i in range(bins - 1, -1, -1):
            self._shift(1)
            if value >> i & 1:
                self.low += self.range

    def begin_block_row(self, dq_state: int, first: bool) -> None:
        """Set range to 256 (section 13)."""
        self.range = 256
        self.starts.append(BlockRowStart(self.position, self.low, dq_state, first))

    def _shift(self, bits: int) -> None:
        self.low <<= bits
        self.position += bits

    def finish(self, terminating_bin: int = 1) -> bytes:
        """Return the codeword: with the terminating bin and the stop bit."""
        if terminating_bin:
            self.low += self.range - 2
        self._shift(7)
        # low has position + 9 bits. The last 8 stay behind; the stop bit and zeros follow.
        bits = self.position + 1
        length = max((bits + 1 + 7) // 8, 2)
        word = ((self.low >> 8) << 1 | 1) << (8 * length - bits - 1)
        return word.to_bytes(length, "big")

    def entry_points(self, codeword: bytes) -> list[dict[str, int]]:
        """Return what a header says of the block rows of the finished `codeword`."""
        word, bits = int.from_bytes(codeword, "big") << 16, 8 * len(codeword) + 16
        points = []
        for before, start in zip(self.starts, self.starts[1:], strict=False):
            if not start.first:
                nine = word >> (bits - start.position - 9) & 511
                value8 = (nine - start.low) % 512
                offset = start.position - before.position
                points.append({"value8": value8, "dq_state": start.dq_state, "offset": offset})
        return points
