"""What a bitstream exercises: syntax elements, contexts, and entries of tables.

Measured, not declared: the headers are read by `syntax.py`, and spec/educational_decoder.py is
watched while it decodes the payloads. An item is a group and a text, such as ("significance",
"17: 1") for context 17 that coded a bin 1. `universe` lists all that a complete corpus hits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from types import ModuleType
from typing import Any

from ..generator.bits import EndOfUnit
from ..generator.syntax import read_units
from . import educational

Item = tuple[str, str]
Hit = Callable[[str, str], None]

FLAG = (0, 1)
PRESENT = """
    nnr_unit_size partial_data_counter base_model_id performance_metric_type
    mps_quantization_parameter validation_set_performance sparsification_threshold
    non_zero_ratio pruning_ratio spm_nn_accuracy ppm_nn_accuracy spm_count_classes
    ppm_count_classes spm_class_bitmask ppm_class_bitmask spm_nn_class_accuracy
    ppm_nn_class_accuracy count_reshaped_tensor_dimension count_super_block_dimension
    count_block_dimension unification_threshold upm_nn_accuracy upm_count_classes
    upm_class_bitmask upm_nn_class_accuracy dpm_count_thresholds mse_threshold dpm_nn_accuracy
    nn_reduction_ratio dpm_count_classes dpm_nn_class_accuracy lps_qp_density
    lps_quantization_parameter topology_data quantization_storage_format quantization_data
    topology_elem_id topology_elem_id_index count_topology_elements_minus2 device_id
    parameter_id put_node_depth parent_device_id parent_node_payload_sha256
    parent_node_payload_sha512 codebook_size decomposition_rank g_number_of_rows
    tensor_dimensions cabac_unary_length_minus1 value8 offset offset_difference
"""
"""Syntax elements whose presence will do."""

FLAGS = """
    nnr_unit_size_flag independently_decodable_flag partial_data_counter_present_flag
    general_profile_idc topology_carriage_flag mps_sparsification_flag mps_pruning_flag
    mps_unification_flag mps_decomposition_performance_map_flag
    mps_topology_indexed_reference_flag base_model_id_present_flag
    validation_set_performance_present_flag metric_type_performance_map_valid_flag
    mps_parent_signalling_enabled_flag nnr_pre_flag lps_self_contained_flag
    lps_sparsification_flag lps_pruning_flag lps_unification_flag topology_compression_format
    quantization_compression_format nnr_multiple_topology_elements_present_flag
    nnr_decompressed_data_format_present_flag node_id_present_flag parent_node_id_present_flag
    temporal_context_modeling_flag codebook_present_flag dq_flag cabac_unary_length_flag
"""
"""Syntax elements of one bit, both values of which are to occur."""

ELEMENTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(FLAGS.split(), FLAG),
    **dict.fromkeys(PRESENT.split(), ()),
    "nnr_unit_type": (0, 1, 2, 3, 4, 5, 32, 63),
    "mps_quantization_method_flags": (0, 1, 2, 3),
    "mps_qp_density": tuple(range(8)),
    "lps_quantization_method_flags": (0, 1, 2, 3),
    "topology_storage_format": (0, 1, 2, 3, 4, 6),
    "nnr_compressed_data_unit_payload_type": (0, 1, 2, 3),
    "input_parameters_present_flag": (1,),
    "parent_node_id_type": (0, 1, 2),
    "codebook_egk": tuple(range(16)),
    "nnr_decompressed_data_format": tuple(range(10)),
    "tensor_dimensions_flag": (1,),
    "compressed_parameter_types": tuple(range(16)),
    "count_tensor_dimensions": (1, 2, 3, 4),
    "first_tensor_dimension_shift": (0,),
    "scan_order": (0, 1, 2, 3, 4),
    "dq_state": tuple(range(8)),
}
"""Each syntax element, with the values that are to occur."""


def context_groups(unary_length: int) -> dict[str, int]:
    """The groups of contexts in their order, and how many each has."""
    significance = {"significance": 24, "significance, base": 16, "significance, history": 8}
    signs = {"sign": 3, "sign, base": 2}
    greater = dict.fromkeys(("greater-than", "greater-than, base"), 2 * unary_length)
    return {**significance, **signs, **greater, "remainder prefix": 31}


@cache
def universe() -> frozenset[Item]:
    """All items."""
    items = {("element", f"{name}={v}") for name, values in ELEMENTS.items() for v in values}
    items |= {("element", name) for name, values in ELEMENTS.items() if not values}
    contexts = context_groups(256).items()
    items |= {(name, f"{i}: {v}") for name, count in contexts for i in range(count) for v in FLAG}
    # The second bin j needs a magnitude of the base that is below j: there is none for j = 0 and 1.
    never = {("greater-than, base", f"{i}: {v}") for i in (1, 3) for v in FLAG}
    items |= {("initialization index", str(e)) for e in range(9)}
    flags = ("index flag", "row skip", "hist_dep_sig_prob_enabled_flag", "row_skip_enabled_flag")
    items |= {(name, str(v)) for name in flags for v in FLAG}
    items |= {("quantizer state", f"{s}, v mod 2 = {p}") for s in range(8) for p in FLAG}
    items |= {("RLPS", f"{r}, {c}") for r in range(8) for c in range(32)}
    items |= {("STEP", f"s{s}: {i}") for s in FLAG for i in range(32)}
    items |= {("entry point at bit", str(n)) for n in range(8)}
    items |= {("stop bit behind bits", str(n)) for n in range(8)}
    items |= {("skipped row, columns mod 4", str(n)) for n in range(4)}
    items |= {(f"scan order {s}", what) for s in range(1, 5) for what in ("block rows", "blocks")}
    kinds = ("one value", "zero first", "zero last", "zero inside")
    items |= {("codebook", f"profile {p}, {kind}") for p in FLAG for kind in kinds}
    return frozenset(items - never)


def exercised(stream: bytes, parents: Sequence[bytes] = ()) -> set[Item]:
    """The items that a stream hits; of one that is refused, those before that."""
    items: set[Item] = set()

    def hit(group: str, text: str) -> None:
        items.add((group, text))

    def seen(name: str, value: Any) -> None:
        if name in ELEMENTS:
            hit("element", f"{name}={value}" if value in ELEMENTS[name] else name)

    # Not all that is refused can be read.
    with suppress(EndOfUnit, IndexError, KeyError, ZeroDivisionError):
        read_units(stream, seen)
    decoder = educational.load()
    with suppress(ValueError):
        series = educational.series_of(decoder, parents)
        labels: dict[int, Item] = {}
        watch_coder(decoder, hit, labels)
        watch_tensors(decoder, hit, labels)
        decoder.decode_bitstream(stream, series)
    return items


def context_label(number: int, unary_length: int) -> Item:
    """The group of a context and its place there."""
    for name, size in context_groups(unary_length).items():
        if number < size:
            return name, str(number)
        number -= size
    raise ValueError(f"no context {number}")


def watch_coder(decoder: ModuleType, hit: Hit, labels: dict[int, Item]) -> None:
    """Bins, the entries of the tables that they use, and the end of a codeword."""
    coder = decoder.ArithmeticDecoder
    plain_bin, plain_end = coder.bin, coder.end_of_codeword

    def watched_bin(self: Any, model: Any) -> int:
        s0, s1 = model.s0, model.s1
        row, column = self.range >> 5 & 7, abs(16 * s0 + s1 >> 7)
        value: int = plain_bin(self, model)
        d = 1 if value else -1
        hit("RLPS", f"{row}, {column}")
        hit("STEP", f"s0: {16 + (d * s0 >> 3)}")
        hit("STEP", f"s1: {16 + (d * s1 >> 7)}")
        group, number = labels.get(id(model), ("row skip", ""))
        hit(group, f"{number}: {value}" if number else str(value))
        return value

    def watched_end(self: Any) -> int:
        hit("stop bit behind bits", str(8 + self.bits_needed))
        return int(plain_end(self))

    coder.bin, coder.end_of_codeword = watched_bin, watched_end


def watch_tensors(decoder: ModuleType, hit: Hit, labels: dict[int, Item]) -> None:
    """Flags, initialization indices, blocks, quantizer states, codebooks."""
    plain = decoder.CodedTensor

    class Watched(plain):  # type: ignore[misc, valid-type]
        def __init__(self, codeword: Any, *arguments: Any) -> None:
            labels.clear()  # of another tensor; the row-skip context is used before it has a label
            super().__init__(codeword, *arguments)
            profile = arguments[1].general_profile_idc
            if profile == 1 and self.rows > 1 and self.cols > 1 and self.codebook_size != 1:
                hit("row_skip_enabled_flag", str(int(len(self.row_skipped) > 0)))
                if arguments[2].parent_node_id_present_flag:
                    enabled = int(self.history is not None)
                    hit("hist_dep_sig_prob_enabled_flag", str(enabled))
            if self.codebook:
                hit("codebook", f"profile {profile}, {codebook_kind(self.codebook)}")

        def decode(self) -> Any:
            for number, model in enumerate(self.contexts):
                labels[id(model)] = context_label(number, self.unary_length)
            labels[id(self.index_flag)] = ("index flag", "")
            result = super().decode()
            for number in self.used_contexts():
                hit("initialization index", str(self.contexts[number].e))
            return result

        def begin_block_row(self, previous_start: int) -> int:
            start: int = super().begin_block_row(previous_start)
            hit("entry point at bit", str((start + 9) % 8))
            hit(f"scan order {self.scan_order}", "block rows")
            return start

        def decode_row(self, row: int, first: int, stop: int) -> None:
            if first:
                hit(f"scan order {self.scan_order}", "blocks")
            if self.dq_flag and self.row_skipped and self.row_skipped[row]:
                hit("skipped row, columns mod 4", str(self.cols % 4))
            super().decode_row(row, first, stop)

        def decode_integer(self, base: int, seen: bool) -> int:
            k: int = super().decode_integer(base, seen)
            if self.dq_flag:
                hit("quantizer state", f"{self.state}, v mod 2 = {k % 2}")
            return k

    decoder.CodedTensor = Watched


def codebook_kind(codebook: Any) -> str:
    """Where its zero lies, on which the binarization depends."""
    size = len(codebook.values)
    if size == 1:
        return "one value"
    return {0: "zero first", size - 1: "zero last"}.get(codebook.zero_offset, "zero inside")


def group_of(item: Item) -> str:
    """A row's name in a short table: the group, and of an element its name."""
    return item[1].split("=")[0] if item[0] == "element" else item[0]


def missing(items: Iterable[Item]) -> list[Item]:
    """The items that are not among those given, in order."""
    return sorted(universe() - set(items))
