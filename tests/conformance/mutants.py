"""Broken decoders: the educational one with a piece of its source replaced."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`old` must occur in the source exactly once."""

    name: str
    old: str
    new: str


MUTANTS = [
    Mutant("RLPS entry", "171 150 130 112 99", "171 150 130 113 99"),
    Mutant(
        "last RLPS entry",
        "28 26 22 20 18 16 14 14 10 10 8 8 6 6 4 4",
        "28 26 22 20 18 16 14 14 10 10 8 8 6 6 4 3",
    ),
    Mutant("STEP entry", "STEP = (2512, 2288,", "STEP = (2512, 2320,"),
    Mutant("initialization", "(6, 6, -673, -21)", "(6, 6, -673, -22)"),
    Mutant(
        "estimator's shift",
        "self.s0 += STEP[16 + (self.s0 >> 3)] >> self.a",
        "self.s0 += STEP[16 + (self.s0 >> 3)] >> self.b",
    ),
    Mutant("column rounded up", "[abs(state >> 7)]", "[abs(state) >> 7]"),
    Mutant("contexts not reset", "            model.reset(model.e)\n", "            pass\n"),
    Mutant(
        "left not reset",
        "        self.left = 0\n        self.codeword.set_range_256()\n        start",
        "        self.codeword.set_range_256()\n        start",
    ),
    Mutant(
        "range not set at the first block row",
        "        if self.rows > side:\n            self.codeword.set_range_256()\n",
        "",
    ),
    Mutant(
        "range not set",
        "        self.left = 0\n        self.codeword.set_range_256()\n",
        "        self.left = 0\n",
    ),
    Mutant(
        "dq state reset",
        "        self.left = 0\n        self.codeword",
        "        self.left = self.state = 0\n        self.codeword",
    ),
    Mutant(
        "dq_flag ignored",
        "self.dq_flag = header.dq_flag if header.payload_type != INT else 0",
        "self.dq_flag = 0",
    ),
    Mutant(
        "dq_flag of integers",
        "header.dq_flag if header.payload_type != INT else 0",
        "header.dq_flag",
    ),
    Mutant("state transition", "(6, 4), (2, 0)", "(6, 4), (0, 2)"),
    Mutant(
        "state's parity",
        "self.state = NEXT_STATE[self.state][k & 1]",
        "self.state = NEXT_STATE[self.state][k & 1 if k > 0 else 0]",
    ),
    Mutant(
        "dequantized index", "return 2 * k - odd if k > 0 else 2 * k + odd", "return 2 * k - odd"
    ),
    Mutant("block side", "side = 4 << self.scan_order if", "side = 8 << self.scan_order if"),
    Mutant(
        "blocks ignored",
        "for first in range(0, self.cols, side):",
        "for first in range(0, self.cols, max(side, self.cols)):",
    ),
    Mutant(
        "scan of one column",
        "self.scan_order = header.scan_order if is_matrix else 0",
        "self.scan_order = header.scan_order",
    ),
    Mutant(
        "left context", "(self.left != 0) + (self.left > 0)", "(self.left != 0) + (self.left < 0)"
    ),
    Mutant("left not updated", "            self.left = k\n", ""),
    Mutant(
        "significance offset",
        "context = SIGNIFICANCE + 3 * self.state + left",
        "context = SIGNIFICANCE + 2 * self.state + left",
    ),
    Mutant(
        "base offset",
        "SIGNIFICANCE_BASE + 2 * self.state + (abs(base) > 1)",
        "SIGNIFICANCE_BASE + 2 * self.state + (base > 1)",
    ),
    Mutant("base before history", "        if seen:\n", "        if seen and not base:\n"),
    Mutant("sign's base", "SIGN_BASE + (base > 0) if base", "SIGN_BASE + (base < 0) if base"),
    Mutant(
        "greater-than base",
        "self.greater_base + (abs(base) < j)",
        "self.greater_base + (abs(base) <= j)",
    ),
    Mutant("greater-than sign", "else GREATER + negative", "else GREATER"),
    Mutant("sign lost", "return -magnitude if negative else magnitude", "return magnitude"),
    Mutant(
        "unary length", "magnitude <= self.unary_length and", "magnitude < self.unary_length and"
    ),
    Mutant(
        "remainder's growth",
        "            smallest += 1 << k\n            k += 1\n        return smallest",
        "            smallest += k\n            k += 1\n        return smallest",
    ),
    Mutant("remainder's bound", "smallest + (1 << k) <= largest", "smallest + (1 << k) < largest"),
    Mutant("last prefix bin", "PREFIX_BINS = 31", "PREFIX_BINS = 30"),
    Mutant(
        "initialization index",
        "reset(1 + self.codeword.bypass(3))",
        "reset(self.codeword.bypass(3))",
    ),
    Mutant("contexts of a codebook", "min(2 * n, 2 * reach)", "2 * n"),
    Mutant("prefixes of a codebook", "if level < reach:", "if level <= reach:"),
    Mutant(
        "codebook in profile 0", "if codebook and stream.general_profile_idc == 1:", "if codebook:"
    ),
    Mutant(
        "codebook's middle",
        "(codebook_size >> 1) + reader.ie(2)",
        "(codebook_size + 1 >> 1) + reader.ie(2)",
    ),
    Mutant(
        "codebook's differences",
        "left[-1] - 1 - reader.ue(codebook_egk)",
        "left[-1] - reader.ue(codebook_egk)",
    ),
    Mutant(
        "codebook's offset", "np.float64)[integers + codebook.zero_offset]", "np.float64)[integers]"
    ),
    Mutant(
        "codebook rounded twice",
        "return (values * step).astype(np.float32)",
        "return values.astype(np.float32) * np.float32(step)",
    ),
    Mutant("sign of a one-sided codebook", "negative = int(self.zero_offset > 0)", "negative = 0"),
    Mutant(
        "Exp-Golomb growth",
        "            x += 1 << k\n            k += 1\n            require",
        "            x += 1 << k\n            require",
    ),
    Mutant(
        "Exp-Golomb sign",
        "return (x + 1) >> 1 if x & 1 else -(x >> 1)",
        "return -(x + 1) >> 1 if x & 1 else x >> 1",
    ),
    Mutant("Exp-Golomb limit", "require(k <= 31,", "require(k <= 40,"),
    Mutant("step's fraction", "(qp & ((1 << density) - 1))", "(qp & 3)"),
    Mutant("qp_delta's bits", "bits = 6 + stream.quantization[0]", "bits = 8"),
    Mutant(
        "qp_delta's sign",
        "return twos_complement(codeword.bypass(bits), bits)",
        "return codeword.bypass(bits)",
    ),
    Mutant(
        "LPS ignored",
        "stream.quantization = lps or stream.mps_quantization",
        "stream.quantization = stream.mps_quantization",
    ),
    Mutant(
        "LPS not replaced",
        "stream.quantization = lps or stream.mps_quantization",
        "stream.quantization = lps or stream.quantization",
    ),
    Mutant(
        "order of a block",
        "return scaling + bias + batch_norm + weight",
        "return scaling + batch_norm + bias + weight",
    ),
    Mutant(
        "factor's rows",
        '"_G": (header.g_number_of_rows, header.rank)',
        '"_G": (header.rank, header.g_number_of_rows)',
    ),
    Mutant(
        "entry points not compared",
        'require(next(self.entry_points, None) == found, "an entry point',
        'require(next(self.entry_points, None) is not None, "an entry point',
    ),
    Mutant(
        "first entry point",
        "offset = reader.ue(11) if offset is None",
        "offset = reader.ue(7) if offset is None",
    ),
    Mutant("offset of the entry point", "offset + reader.ie(7)", "reader.ie(7)"),
    Mutant("skipped rows ignored", "if self.row_skipped and self.row_skipped[row]:", "if False:"),
    Mutant("skipped rows keep the state", "for _ in range(self.cols % 4):", "for _ in range(0):"),
    Mutant("history of the latest alone", "before | (integers != 0)", "integers != 0"),
    Mutant(
        "base of the first stream",
        "self.latest[name], self.history[name] = integers,",
        "_, self.history[name] = self.latest.setdefault(name, integers),",
    ),
    Mutant("temporal contexts ignored", "if header.temporal_context_modeling_flag:", "if False:"),
    Mutant(
        "history flag not read",
        "if header.parent_node_id_present_flag and codeword.bypass(1):",
        "if False:",
    ),
    Mutant("digest's length", "reader.u(256 * parent_node_id_type)", "reader.u(256)"),
    Mutant(
        "data format ignored",
        "return FLOAT_FORMATS[header.data_format or 1]",
        "return FLOAT_FORMATS[1]",
    ),
    Mutant(
        "integer formats not checked",
        '"an integer does not fit its data format")\n        return dtype',
        '"") if header.data_format != 3 else None\n        return dtype',
    ),
    Mutant(
        "product rounded early",
        "total = np.zeros((len(g), h.shape[1]), np.float64)",
        "total = np.zeros((len(g), h.shape[1]), np.float32)",
    ),
    Mutant(
        "stop bit not checked",
        'require(unused == 0x80, "a codeword has no stop bit at its end")',
        "",
    ),
    Mutant(
        "terminating bin not checked",
        'require(self.value >= (self.range - 2) << 7, "the terminating bin of a codeword is 0")',
        "",
    ),
    Mutant(
        "first value not checked",
        'require(self.value < self.range << 7, "a codeword starts with a value beyond the range")',
        "",
    ),
    Mutant(
        "alignment not checked",
        "require(self.u(padding) == 1 << (padding - 1)",
        "require(self.u(padding) >= 0",
    ),
    Mutant(
        "reserved bits not checked",
        'require(self.u(n) == 0, "reserved bits are not 0")',
        "self.u(n)",
    ),
    Mutant("names twice", 'require(not twice, f"the tensor {name!r} occurs twice")', ""),
    Mutant("private units", "FIRST_PRIVATE_TYPE = 32", "FIRST_PRIVATE_TYPE = 64"),
    Mutant(
        "long units", "reader.u(31 if reader.u(1) else 15)", "reader.u(15 if reader.u(1) else 15)"
    ),
    Mutant("reference list's index", "return elements[index]", "return elements[-1 - index]"),
]
"""What an implementer may get wrong: tables, contexts, resets, flags, orders, bounds, checks."""
