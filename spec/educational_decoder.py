#!/usr/bin/env python3
"""A decoder for ISO/IEC 15938-17 (NNR) bitstreams in one file, to be read beside bitstream.md.

    python educational_decoder.py IN.nnr OUT.npz [--parents P1.nnr P2.nnr ...] [--factors]

It needs numpy alone, is plain rather than fast, and has the order of the document: notation, units,
parameter sets, topology and quantization units, data unit header, payloads, arithmetic decoder,
probability models, coded tensor, binarization, dependent quantization, reconstruction, updates.
Whatever is wrong with a bitstream, or is outside the document, raises ValueError.

Tensors come as they were coded: local scaling and batch norm are tensors of their own, not applied.
"""
from __future__ import annotations

import argparse
import math
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAX_WEIGHTS = 1 << 28  # our limit for one tensor: the size of its unit is none
MAX_DIMENSIONS = 32  # our limit, numpy 1's


def decode(data: bytes, parents: Sequence[bytes] = (),
           factors: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a bitstream, by name, in stream order.

    parents: the earlier bitstreams of a series of updates, oldest first.
    factors: give the factors (X_G, X_H) of a decomposed tensor X as well as their product.
    """
    series = Series()
    for parent in parents:
        series.append(decode_bitstream(parent, series))
    return assemble(decode_bitstream(data, series), factors)


# ---- Notation -----------------------------------------------------------------------------------

def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


class BitReader:
    """Reads the descriptors of the syntax tables, most significant bit first, inside one unit."""

    def __init__(self, data: bytes, first: int, end: int) -> None:
        self.data, self.bit, self.end = data, 8 * first, 8 * end

    def u(self, n: int) -> int:
        require(self.bit + n <= self.end, "a syntax element reaches past the end of its unit")
        first, last = self.bit >> 3, (self.bit + n + 7) >> 3
        self.bit += n
        word = int.from_bytes(self.data[first:last], "big")
        return (word >> (8 * last - self.bit)) & ((1 << n) - 1)

    def zeros(self, n: int) -> None:
        require(self.u(n) == 0, "reserved bits are not 0")

    def i(self, n: int) -> int:
        return twos_complement(self.u(n), n)

    def ue(self, k: int) -> int:
        x = 0
        while not self.u(1):
            x += 1 << k
            k += 1
            require(k <= 31, "an Exp-Golomb code has too many leading zeros for 32 bits")
        return x + self.u(k)

    def ie(self, k: int) -> int:
        x = self.ue(k)
        return (x + 1) >> 1 if x & 1 else -(x >> 1)

    def skip_flt(self, count: int = 1) -> None:
        self.u(32 * count)

    def st(self) -> str:
        first = self.bit >> 3  # every string of the syntax starts byte-aligned
        stop = self.data.find(b"\0", first, self.end >> 3)
        require(stop >= 0, "a string is not ended inside its unit")
        self.bit = 8 * (stop + 1)
        try:
            return self.data[first:stop].decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("a string is not UTF-8") from None

    def align(self) -> None:
        padding = 8 - (self.bit & 7)
        require(self.u(padding) == 1 << (padding - 1), "alignment is not a one followed by zeros")


def twos_complement(x: int, n: int) -> int:
    return x - ((x >> (n - 1)) << n)


# ---- Units --------------------------------------------------------------------------------------

NNR_STR, NNR_MPS, NNR_LPS, NNR_TPL, NNR_QNT, NNR_NDU, NNR_AGG = range(7)
FIRST_PRIVATE_TYPE = 32


class Tensor(NamedTuple):
    values: np.ndarray  # integers, or binary32 whatever the type of the result
    dtype: type  # of the result
    integers: np.ndarray | None  # the context for the next update; None for RAW_FLOAT
    dense_shape: tuple[int, ...] | None  # for a factor: the shape of the product


@dataclass
class Bitstream:
    """What the units read so far have set, and the tensors that they gave."""
    series: Series
    general_profile_idc: int = 0
    mps_seen: bool = False
    mps_topology_indexed_reference_flag: int = 0
    mps_parent_signalling_enabled_flag: int = 0
    mps_quantization: tuple[int, int] | None = None  # density, parameter
    quantization: tuple[int, int] | None = None  # the MPS's, until an LPS replaces them
    topology_elements: list[str] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def units(data: bytes) -> Iterator[tuple[int, BitReader]]:
    """Each unit's type and a reader that stands behind the common unit header."""
    position = 0
    while position < len(data):
        reader = BitReader(data, position, len(data))
        size = reader.u(31 if reader.u(1) else 15)
        unit_type = reader.u(6)
        reader.u(1)  # independently_decodable_flag: nothing depends on it
        partial_data_counter_present_flag = reader.u(1)
        require(reader.bit <= 8 * (position + size), "a unit is smaller than its own header")
        require(position + size <= len(data), "a unit reaches past the end of the bitstream")
        reader.end = 8 * (position + size)
        if unit_type < FIRST_PRIVATE_TYPE:  # private units are skipped by their size, unread
            require(not partial_data_counter_present_flag, "partial data units are not supported")
            yield unit_type, reader
        else:
            require(position > 0, "the first unit is not NNR_STR")
        position += size


def decode_bitstream(data: bytes, series: Series) -> dict[str, Tensor]:
    stream = Bitstream(series)
    contents = {NNR_STR: start_unit, NNR_MPS: model_parameter_set, NNR_LPS: layer_parameter_set,
                NNR_TPL: topology_unit, NNR_QNT: quantization_unit, NNR_NDU: data_unit}
    for number, (unit_type, reader) in enumerate(units(data)):
        require((unit_type == NNR_STR) == (number == 0), "NNR_STR must be the first unit alone")
        require(unit_type != NNR_AGG, "aggregate units are not supported")
        require(unit_type in contents, f"unit type {unit_type} is reserved")
        contents[unit_type](reader, stream)
        require(reader.bit == reader.end, "a unit's content does not end at the unit's end")
    require(len(data) > 0, "the bitstream is empty")
    return stream.tensors


def start_unit(reader: BitReader, stream: Bitstream) -> None:
    stream.general_profile_idc = reader.u(8)
    require(stream.general_profile_idc <= 1, "general_profile_idc is neither 0 nor 1")


# ---- Parameter sets and performance maps --------------------------------------------------------

def model_parameter_set(reader: BitReader, stream: Bitstream) -> None:
    require(not stream.mps_seen, "a second model parameter set")
    stream.mps_seen = True
    reader.u(1)  # topology_carriage_flag
    sparsification, pruning, unification, decomposition = (reader.u(1) for _ in range(4))
    quantization_method_flags = reader.u(3)
    stream.mps_topology_indexed_reference_flag = reader.u(1)
    validation_set_performance_present_flag = 0
    if stream.general_profile_idc == 1:
        base_model_id_present_flag = reader.u(1)
        validation_set_performance_present_flag = reader.u(1)
        metric_type_performance_map_valid_flag = reader.u(1)
        stream.mps_parent_signalling_enabled_flag = reader.u(1)
        if stream.mps_parent_signalling_enabled_flag:
            reader.u(1)  # nnr_pre_flag
        else:
            reader.zeros(1)
        reader.zeros(2)
        if base_model_id_present_flag:
            reader.st()  # base_model_id
        if validation_set_performance_present_flag or metric_type_performance_map_valid_flag:
            reader.st()  # performance_metric_type
    else:
        reader.zeros(7)
    mps = quantization_parameters(reader, quantization_method_flags)
    stream.mps_quantization = stream.quantization = mps
    performance_maps(reader, sparsification, pruning, unification, decomposition)
    if validation_set_performance_present_flag:
        reader.skip_flt()  # validation_set_performance
    reader.align()


def layer_parameter_set(reader: BitReader, stream: Bitstream) -> None:
    require(stream.mps_seen, "a layer parameter set before the model parameter set")
    reader.u(1)  # lps_self_contained_flag
    reader.zeros(7 + 1)
    sparsification, pruning, unification = (reader.u(1) for _ in range(3))
    quantization_method_flags = reader.u(3)
    reader.zeros(1)
    lps = quantization_parameters(reader, quantization_method_flags)
    stream.quantization = lps or stream.mps_quantization  # the latest LPS counts alone
    performance_maps(reader, sparsification, pruning, unification, 0)
    reader.align()


def quantization_parameters(reader: BitReader, method_flags: int) -> tuple[int, int] | None:
    require(method_flags <= 3, "a quantization method is reserved")
    if not method_flags:  # neither NNR_QSU nor NNR_QCB
        return None
    return reader.u(3), reader.i(13)  # density, parameter


def performance_maps(reader: BitReader, sparsification: int, pruning: int,
                     unification: int, decomposition: int) -> None:
    """Accuracies at the encoder's operating points: they change nothing in what is decoded."""
    for present, numbers in ((sparsification, 3), (pruning, 2)):
        for _ in range(one_fewer(reader.u(8)) if present else 0):
            reader.skip_flt(numbers)  # threshold and ratio, or ratio alone; accuracy
            class_accuracies(reader)
    for _ in range(one_fewer(reader.u(8)) if unification else 0):
        for _ in range(one_fewer(reader.ue(1))):
            reader.ue(7)  # reshaped tensor dimension
        reader.align()
        for _ in ("super block", "block"):
            reader.u(8 * one_fewer(reader.u(8)))
        reader.skip_flt(2)  # threshold, accuracy
        class_accuracies(reader)
    for _ in range(one_fewer(reader.u(8)) if decomposition else 0):
        reader.skip_flt(3)  # mse, accuracy, reduction ratio
        reader.skip_flt(reader.u(16))  # an accuracy for each class


def one_fewer(count: int) -> int:
    require(count >= 1, "a count of a performance map is 0")
    return count - 1


def class_accuracies(reader: BitReader) -> None:
    count_classes, _class_bitmask = reader.u(8), reader.ue(7)
    reader.skip_flt(count_classes)


# ---- Topology and quantization units ------------------------------------------------------------

UNREC, NNEF, ONNX, PYT, TEF, PRUN, REFLIST = range(7)


def topology_unit(reader: BitReader, stream: Bitstream) -> None:
    topology_storage_format, topology_compression_format = reader.u(8), reader.u(8)
    require(topology_storage_format <= REFLIST, "topology_storage_format is reserved")
    require(topology_storage_format != PRUN, "pruning topologies are not supported")
    if topology_storage_format == REFLIST:
        require(topology_compression_format == 0, "a compressed reference list is not supported")
        stream.topology_elements = topology_elements_ids_list(reader, None)
    else:
        text = topology_storage_format not in (NNEF, ONNX)
        skip_data(reader, topology_compression_format, text)


def quantization_unit(reader: BitReader, stream: Bitstream) -> None:
    _quantization_storage_format, quantization_compression_format = reader.u(8), reader.u(8)
    skip_data(reader, quantization_compression_format, True)


def skip_data(reader: BitReader, compression_format: int, text: bool) -> None:
    """Topology or quantization data: decoding the tensors does not need it."""
    require(compression_format <= 1, "the compression format of a unit is reserved")
    if text and compression_format == 0:
        reader.st()
    else:
        reader.bit = reader.end


def topology_elements_ids_list(reader: BitReader, elements: list[str] | None) -> list[str]:
    """Names of two or more topology elements; indices into elements if that is given."""
    count = reader.ue(7) + 2
    if elements is None:
        reader.align()
    names = [topology_element(reader, elements) for _ in range(count)]
    if elements is not None:
        reader.align()
    return names


def topology_element(reader: BitReader, elements: list[str] | None) -> str:
    if elements is None:
        return reader.st()
    index = reader.ue(7)
    require(index < len(elements), "a topology element's index is not in a reference list")
    return elements[index]


# ---- Compressed data unit header ----------------------------------------------------------------

INT, FLOAT, RAW_FLOAT, BLOCK = range(4)
DC, LS, BN, BI = 1, 2, 4, 8  # compressed_parameter_types
INTEGER_FORMATS = {0: (32, np.int32), 2: (2, np.int8), 3: (3, np.int8), 4: (4, np.int8),
                   5: (8, np.int8), 6: (16, np.int16), 7: (64, np.int64)}
FLOAT_FORMATS = {1: np.float32, 8: np.float16, 9: np.float64}


class Codebook(NamedTuple):
    values: list[int]
    zero_offset: int


@dataclass
class DataUnitHeader:
    payload_type: int
    names: list[str] = field(default_factory=list)
    parent_node_id_present_flag: int = 0
    temporal_context_modeling_flag: int = 0
    put_node_depth: int | None = None
    codebooks: list[Codebook] = field(default_factory=list)
    dq_flag: int = 0
    data_format: int | None = None
    parameter_types: int = 0
    rank: int = 0
    g_number_of_rows: int = 0
    dimensions: tuple[int, ...] = ()
    unary_length: int = 10
    scan_order: int = 0
    entry_points: list[tuple[int, int, int]] = field(default_factory=list)


def data_unit_header(reader: BitReader, stream: Bitstream) -> DataUnitHeader:
    header = DataUnitHeader(payload_type=reader.u(5))
    require(header.payload_type <= BLOCK, "the payload type of a data unit is reserved")
    multiple_topology_elements_present_flag = reader.u(1)
    require(multiple_topology_elements_present_flag == (header.payload_type == BLOCK),
            "several topology elements go with a BLOCK payload, and with that alone")
    decompressed_data_format_present_flag, input_parameters_present_flag = reader.u(1), reader.u(1)
    indexed = stream.mps_topology_indexed_reference_flag
    elements = stream.topology_elements if indexed else None
    if multiple_topology_elements_present_flag:
        header.names = topology_elements_ids_list(reader, elements)
    else:
        header.names = [topology_element(reader, elements)]
    if stream.general_profile_idc == 1:
        node_ids(reader, header, stream.mps_parent_signalling_enabled_flag)
    codebook_present_flag = header.payload_type in (FLOAT, BLOCK) and reader.u(1)
    if codebook_present_flag:
        header.codebooks.append(codebook(reader))
    if header.payload_type != RAW_FLOAT:
        header.dq_flag = reader.u(1)
    if decompressed_data_format_present_flag:
        header.data_format = reader.u(7)
    require(input_parameters_present_flag == 1, "a tensor without dimensions is not supported")
    input_parameters(reader, header)
    if header.payload_type == BLOCK and header.parameter_types & DC and codebook_present_flag:
        header.codebooks.append(codebook(reader))
    if len(header.dimensions) > 1:
        if stream.general_profile_idc == 1:
            require(reader.ue(1) == 0, "first_tensor_dimension_shift is not supported")
        header.scan_order = reader.u(4)
        require(header.scan_order <= 4, "scan_order is reserved")
        cabac_entry_point_list(reader, header)
    reader.align()
    return header


def node_ids(reader: BitReader, header: DataUnitHeader, parent_signalling_enabled: int) -> None:
    """Parents are found by name in earlier bitstreams, so the identifiers are only read."""
    node_id_present_flag = reader.u(1)
    if node_id_present_flag:
        reader.ue(1), reader.ue(5)  # device_id, parameter_id
        header.put_node_depth = reader.ue(4)
    if parent_signalling_enabled:
        header.parent_node_id_present_flag = reader.u(1)
    if header.parent_node_id_present_flag:
        parent_node_id_type = reader.u(2)
        require(parent_node_id_type <= 2, "parent_node_id_type is reserved")
        header.temporal_context_modeling_flag = reader.u(1)
        if parent_node_id_type == 0:
            reader.ue(1)  # parent_device_id
            if not node_id_present_flag:
                reader.ue(5), reader.ue(4)  # parameter_id, put_node_depth
        else:
            reader.u(256 * parent_node_id_type)  # SHA-256 or SHA-512


def codebook(reader: BitReader) -> Codebook:
    codebook_egk, codebook_size = reader.u(4), reader.ue(2)
    require(codebook_size >= 1, "a codebook is empty")
    zero_offset = (codebook_size >> 1) + reader.ie(2)
    require(0 <= zero_offset < codebook_size, "a codebook's zero_offset lies outside of it")
    left, right = [reader.ie(7)], []  # the value at zero_offset, then those below it
    for _ in range(zero_offset):
        left.append(left[-1] - 1 - reader.ue(codebook_egk))
    for _ in range(codebook_size - 1 - zero_offset):
        right.append((right or left[:1])[-1] + 1 + reader.ue(codebook_egk))
    values = left[::-1] + right
    require(values[0] >= -(1 << 31) and values[-1] < 1 << 31, "a codebook value exceeds 32 bits")
    return Codebook(values, zero_offset)


def input_parameters(reader: BitReader, header: DataUnitHeader) -> None:
    tensor_dimensions_flag, cabac_unary_length_flag = reader.u(1), reader.u(1)
    header.parameter_types = reader.u(4)
    if header.parameter_types & DC:
        header.rank, header.g_number_of_rows = reader.ue(3), reader.ue(3)
    require(tensor_dimensions_flag == 1, "a tensor without dimensions is not supported")
    count = reader.ue(1)
    require(1 <= count <= MAX_DIMENSIONS, "the number of tensor dimensions is 0 or too large")
    header.dimensions = tuple(reader.ue(7) for _ in range(count))
    if cabac_unary_length_flag:
        header.unary_length = reader.u(8) + 1
    require(1 <= math.prod(header.dimensions) <= MAX_WEIGHTS, "a tensor is empty or too large")
    if header.parameter_types & DC:
        require(header.rank >= 1 and header.g_number_of_rows >= 1
                and math.prod(header.dimensions) % header.g_number_of_rows == 0,
                "a decomposition has rank 0, or its rows do not divide the tensor")


def weight_shapes(header: DataUnitHeader) -> dict[str, tuple[int, ...]]:
    """Name and shape of the weight, or of what the unit has of its factors G and H."""
    factor_name = header.names[0][-2:] in ("_G", "_H")
    if not header.parameter_types & DC or (header.payload_type != BLOCK and not factor_name):
        return {header.names[0]: header.dimensions}
    shapes = {"_G": (header.g_number_of_rows, header.rank),
              "_H": (header.rank, math.prod(header.dimensions) // header.g_number_of_rows)}
    names = header.names[:2]
    stem = names[0][:-2]
    require(header.payload_type != BLOCK or names == [stem + "_G", stem + "_H"],
            "the names of a decomposition's factors are not X_G and X_H")
    return {name: shapes[name[-2:]] for name in names}


def entry_point_count(header: DataUnitHeader, rows: int) -> int:
    side = 4 << header.scan_order
    return (rows + side - 1) // side - 1


def cabac_entry_point_list(reader: BitReader, header: DataUnitHeader) -> None:
    if header.scan_order == 0:
        return
    shapes = weight_shapes(header).values()
    count = sum(entry_point_count(header, shape[0]) for shape in shapes)
    offset = None
    for _ in range(count):
        value8, dq_state = reader.u(8), reader.u(3) if header.dq_flag else 0
        offset = reader.ue(11) if offset is None else offset + reader.ie(7)
        header.entry_points.append((value8, dq_state, offset))


# ---- Payloads -----------------------------------------------------------------------------------

def data_unit(reader: BitReader, stream: Bitstream) -> None:
    require(stream.mps_seen, "a data unit comes before the model parameter set")
    header = data_unit_header(reader, stream)
    shapes = weight_shapes(header)
    codebooks = dict(zip(shapes, header.codebooks, strict=False))  # the second is H's
    raw = header.payload_type == RAW_FLOAT
    codeword = None if raw else ArithmeticDecoder(reader.data, reader.bit >> 3, reader.end >> 3)
    entry_points = iter(header.entry_points)
    decoded = {}
    for name in coded_names(header):
        twice = name in decoded or name in stream.tensors
        require(not twice, f"the tensor {name!r} occurs twice")
        shape = shapes.get(name, header.dimensions[:1])
        require(math.prod(shape) <= MAX_WEIGHTS, "a factor is too large")
        if raw:
            values, integers = raw_float(reader, header, shape), None
        else:
            qp_delta = None if header.payload_type == INT else read_qp_delta(codeword, stream)
            book = codebooks.get(name)
            coded = CodedTensor(codeword, entry_points, stream, header, name, shape, book)
            integers = coded.decode().reshape(shape)
            values = reconstruct(integers, qp_delta, stream, book)
        is_factor = len(shapes) == 2 and name in shapes
        dense_shape = header.dimensions if is_factor else None
        decoded[name] = Tensor(values, data_format(values, header), integers, dense_shape)
    require(next(entry_points, None) is None, "an entry point has no block row")
    if not raw:
        reader.bit = 8 * codeword.end_of_codeword()
    stream.tensors.update((name, decoded[name]) for name in header.names)


def coded_names(header: DataUnitHeader) -> list[str]:
    """The names in the order of the payload; the identifier list of a BLOCK has another."""
    if header.payload_type != BLOCK:
        return header.names
    types, names = header.parameter_types, list(header.names)
    counts = 1 + bool(types & DC), bool(types & LS), 4 * bool(types & BN), bool(types & BI)
    require(len(names) == sum(counts), "the number of names does not fit the parameter types")
    weight, scaling, batch_norm, bias = ([names.pop(0) for _ in range(count)] for count in counts)
    return scaling + bias + batch_norm + weight


def raw_float(reader: BitReader, header: DataUnitHeader, shape: tuple[int, ...]) -> np.ndarray:
    require(header.scan_order == 0, "scan_order has no meaning for RAW_FLOAT")
    first, size = reader.bit >> 3, 4 * math.prod(shape)
    require(8 * size == reader.end - reader.bit, "RAW_FLOAT does not have four bytes per weight")
    reader.bit = reader.end
    values = np.frombuffer(reader.data, "<f4", math.prod(shape), first)
    return values.astype(np.float32).reshape(shape)


def read_qp_delta(codeword: ArithmeticDecoder, stream: Bitstream) -> int:
    require(stream.quantization is not None, "no parameter set gives a quantization parameter")
    bits = 6 + stream.quantization[0]
    return twos_complement(codeword.bypass(bits), bits)


# ---- Arithmetic decoder -------------------------------------------------------------------------

class ArithmeticDecoder:
    """One codeword. value < range << 7 holds in every codeword that an encoder can write."""

    def __init__(self, data: bytes, first: int, end: int) -> None:
        self.data, self.first, self.position, self.end = data, first, first, end
        self.range, self.value, self.bits_needed = 510, self.next_byte() << 8, -8
        self.value |= self.next_byte()
        require(self.value < self.range << 7, "a codeword starts with a value beyond the range")

    def next_byte(self) -> int:
        require(self.position < self.end, "a codeword reaches past the end of its unit")
        self.position += 1
        return self.data[self.position - 1]

    def bin(self, model: Model) -> int:
        state = 16 * model.s0 + model.s1
        mps = 1 if state >= 0 else 0
        rlps = RLPS[(self.range >> 5) & 7][abs(state >> 7)]
        rmps = self.range - rlps
        bin, self.range = mps, rmps
        if self.value >> 7 >= rmps:
            self.value -= rmps << 7
            bin, self.range = 1 - mps, rlps
        if self.range < 256:
            shifts = 9 - self.range.bit_length()
            self.range <<= shifts
            self.value <<= shifts
            self.bits_needed += shifts
            if self.bits_needed >= 0:
                self.value += self.next_byte() << self.bits_needed
                self.bits_needed -= 8
        model.update(bin)
        return bin

    def bypass(self, n: int) -> int:
        bits = 0
        for _ in range(n):
            self.value <<= 1
            self.bits_needed += 1
            if self.bits_needed >= 0:
                self.value += self.next_byte()
                self.bits_needed = -8
            bits <<= 1
            if self.value >= self.range << 7:
                self.value -= self.range << 7
                bits |= 1
        return bits

    def set_range_256(self) -> None:
        self.range = 256
        require(self.value < self.range << 7, "a block row starts with a value beyond the range")

    def shifts(self) -> int:
        """The position in the codeword, in bits, that entry points count in."""
        return 8 * (self.position - self.first) - 8 + self.bits_needed

    def end_of_codeword(self) -> int:
        require(self.value >= (self.range - 2) << 7, "the terminating bin of a codeword is 0")
        last_byte = self.data[self.position - 1]
        unused = (last_byte << (8 + self.bits_needed)) & 0xFF
        require(unused == 0x80, "a codeword has no stop bit at its end")
        return self.position


# ---- Probability models -------------------------------------------------------------------------

STEP = (2512, 2288, 2064, 1840, 1616, 1392, 1168, 944, 720, 560, 464, 368, 272, 208, 144, 80,
        64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 0)

RLPS = [[int(entry) for entry in row.split()] for row in """\
128 112 97 84 74 65 57 50 45 39 34 30 27 23 20 18 15 14 12 11 10 9 7 7 5 5 4 4 3 3 2 2
142 125 108 93 82 72 63 56 50 43 38 33 30 26 22 20 17 16 13 12 11 10 8 8 6 6 5 5 3 3 2 2
156 137 119 103 90 79 70 61 55 48 42 37 33 28 24 22 19 17 15 13 12 11 9 9 6 6 5 5 4 4 2 2
171 150 130 112 99 87 76 67 60 52 46 40 36 31 27 24 21 19 16 15 13 12 10 10 7 7 6 6 4 4 3 3
185 162 141 121 107 94 82 73 65 56 50 43 39 34 29 26 22 21 17 16 14 13 11 11 8 8 6 6 4 4 3 3
199 175 152 131 115 101 89 78 70 61 54 47 42 36 31 28 24 22 19 17 15 14 12 12 8 8 7 7 5 5 3 3
213 187 163 140 123 108 95 84 75 65 58 50 45 39 33 30 26 24 20 18 16 15 13 13 9 9 7 7 5 5 3 3
228 200 174 150 132 116 102 90 80 70 62 54 48 42 36 32 28 26 22 20 18 16 14 14 10 10 8 8 6 6 4 4
""".splitlines()]

# shift of s0, shift of s1, 16 * s0 + s1, s0
INITIALIZATION = ((5, 4, 0, 0), (5, 4, -1310, -41), (5, 4, 3039, 95), (4, 5, 0, 0), (6, 6, 962, 30),
                  (6, 6, 3039, 95), (6, 6, -673, -21), (7, 5, 0, 0), (7, 5, 962, 30))


class Model:
    """An estimate of a bin's probability by two states of different inertia."""
    __slots__ = ("a", "b", "e", "s0", "s1")

    def __init__(self, e: int = 0) -> None:
        self.reset(e)

    def reset(self, e: int) -> None:
        self.e = e
        self.a, self.b, state, self.s0 = INITIALIZATION[e]
        self.s1 = state - 16 * self.s0

    def update(self, bin: int) -> None:
        if bin:
            self.s0 += STEP[16 + (self.s0 >> 3)] >> self.a
            self.s1 += STEP[16 + (self.s1 >> 7)] >> self.b
        else:
            self.s0 -= STEP[16 + (-self.s0 >> 3)] >> self.a
            self.s1 -= STEP[16 + (-self.s1 >> 7)] >> self.b


# ---- Coded tensor -------------------------------------------------------------------------------

# First context of each kind; those behind the greater-than flags depend on the unary length.
SIGNIFICANCE, SIGNIFICANCE_BASE, SIGNIFICANCE_HISTORY = 0, 24, 40
SIGN, SIGN_BASE, GREATER = 48, 51, 53
PREFIX_BINS = 31
UNBOUNDED = 1 << 40  # above every magnitude that can be coded


class CodedTensor:
    """The integers of one tensor: contexts, the flags before the integers, and the scan."""

    def __init__(self, codeword: ArithmeticDecoder, entry_points: Iterator, stream: Bitstream,
                 header: DataUnitHeader, name: str, shape: tuple[int, ...],
                 codebook: Codebook | None) -> None:
        self.codeword, self.entry_points, self.codebook = codeword, entry_points, codebook
        # Integers that are no weights' have no quantizers to alternate: the flag is ignored.
        self.dq_flag = header.dq_flag if header.payload_type != INT else 0
        self.unary_length = header.unary_length
        self.rows, self.cols = shape[0], math.prod(shape[1:])
        is_matrix = self.rows > 1 and self.cols > 1
        self.scan_order = header.scan_order if is_matrix else 0
        if header.scan_order and self.cols == 1 and len(shape) > 1:
            for _ in range(entry_point_count(header, self.rows)):
                next(entry_points)  # there, but a column has no block rows
        self.codebook_size = self.zero_offset = 0
        # The first edition codes the integers as if there were no codebook.
        if codebook and stream.general_profile_idc == 1:
            self.codebook_size = len(codebook.values)
            self.zero_offset = codebook.zero_offset
        self.greater_base = GREATER + 2 * self.unary_length
        self.prefix = GREATER + 4 * self.unary_length
        self.contexts = [Model() for _ in range(self.prefix + PREFIX_BINS)]
        self.index_flag, self.row_skip_flag = Model(), Model()
        self.base, self.history, self.row_skipped = None, None, ()
        if header.temporal_context_modeling_flag:
            self.base = stream.series.base(name, shape)
        if stream.general_profile_idc == 1 and is_matrix and self.codebook_size != 1:
            # hist_dep_sig_prob_enabled_flag, then row_skip_enabled_flag
            if header.parent_node_id_present_flag and codeword.bypass(1):
                self.history = stream.series.seen(name, shape, header.put_node_depth)
            if codeword.bypass(1):
                self.row_skipped = [codeword.bin(self.row_skip_flag) for _ in range(self.rows)]

    def used_contexts(self) -> Iterator[int]:
        """The contexts that have an initialization index in the codeword, in its order."""
        size, zero, n = self.codebook_size, self.zero_offset, self.unary_length
        reach = max(zero, size - 1 - zero) if size else UNBOUNDED  # the largest magnitude
        temporal = self.base is not None
        states = 8 if self.dq_flag else 1
        if size != 1:
            yield from range(SIGNIFICANCE, SIGNIFICANCE + 3 * states)
            if temporal:
                yield from range(SIGNIFICANCE_BASE, SIGNIFICANCE_BASE + 2 * states)
            if self.history is not None:
                yield from range(SIGNIFICANCE_HISTORY, SIGNIFICANCE_HISTORY + states)
            if size == 0 or 0 < zero < size - 1:
                yield from range(SIGN, GREATER if temporal else SIGN_BASE)
        yield from range(GREATER, GREATER + min(2 * n, 2 * reach))
        if temporal:
            count = min(2 * n, max(0, 2 * (reach - 1)))
            yield from range(self.greater_base, self.greater_base + count)
        level = n - 1
        for i in range(PREFIX_BINS):
            level += 1 << i
            if level < reach:
                yield self.prefix + i

    def decode(self) -> np.ndarray:
        self.integers = np.zeros(self.rows * self.cols, np.int64)
        for context in self.used_contexts():
            if self.codeword.bin(self.index_flag):
                self.contexts[context].reset(1 + self.codeword.bypass(3))
        self.state = self.left = 0
        side = 4 << self.scan_order if self.scan_order else max(self.rows, self.cols)
        if self.rows > side:
            self.codeword.set_range_256()
        start = self.codeword.shifts()
        for top in range(0, self.rows, side):
            if top > 0:
                start = self.begin_block_row(start)
            if self.codebook_size == 1:
                continue  # nothing is coded: every weight is the one value
            for first in range(0, self.cols, side):
                for row in range(top, min(top + side, self.rows)):
                    self.decode_row(row, first, min(first + side, self.cols))
        return self.integers

    def begin_block_row(self, previous_start: int) -> int:
        """All but the dq state starts anew, so that a block row can be decoded on its own."""
        for model in self.contexts:
            model.reset(model.e)
        self.left = 0
        self.codeword.set_range_256()
        start = self.codeword.shifts()
        found = (self.codeword.value >> 7, self.state, start - previous_start)
        require(next(self.entry_points, None) == found, "an entry point differs from its block row")
        return start

    def decode_row(self, row: int, first: int, stop: int) -> None:
        """The part of one row that lies in one block."""
        if self.row_skipped and self.row_skipped[row]:
            for _ in range(self.cols % 4):  # a step per column of the matrix; four lead back
                self.state = NEXT_STATE[self.state][0]
            return
        integers, base, history = self.integers, self.base, self.history
        for i in range(row * self.cols + first, row * self.cols + stop):
            k = self.decode_integer(base[i] if base else 0, history[i] if history else False)
            self.left = k
            if k:
                integers[i] = dependent_index(k, self.state) if self.dq_flag else k
                require(-(1 << 31) <= integers[i] < 1 << 31, "an integer does not fit 32 bits")
            if k and self.codebook:  # indices are doubled too
                require(0 <= integers[i] + self.codebook.zero_offset < len(self.codebook.values),
                        "an index lies outside of its codebook")
            if self.dq_flag:
                self.state = NEXT_STATE[self.state][k & 1]

    # ---- Binarization ---------------------------------------------------------------------------

    def decode_integer(self, base: int, seen: bool) -> int:
        """base: the parent's integer here (0: none); seen: whether the series had one here."""
        left = (self.left != 0) + (self.left > 0)  # 0 zero, 1 negative, 2 positive
        if seen:
            context = SIGNIFICANCE_HISTORY + self.state
        elif base:
            context = SIGNIFICANCE_BASE + 2 * self.state + (abs(base) > 1)
        else:
            context = SIGNIFICANCE + 3 * self.state + left
        if not self.codeword.bin(self.contexts[context]):
            return 0
        if self.codebook_size and self.zero_offset in (0, self.codebook_size - 1):
            negative = int(self.zero_offset > 0)
        else:
            context = SIGN_BASE + (base > 0) if base else SIGN + left
            negative = self.codeword.bin(self.contexts[context])
        magnitude = self.decode_magnitude(base, negative)
        return -magnitude if negative else magnitude

    def decode_magnitude(self, base: int, negative: int) -> int:
        largest = UNBOUNDED  # what is certain from the codebook's size is not coded
        if self.codebook_size:
            largest = self.zero_offset if negative else self.codebook_size - 1 - self.zero_offset
        magnitude = 1
        while magnitude <= self.unary_length and magnitude < largest:
            j = magnitude - 1
            context = self.greater_base + (abs(base) < j) if base else GREATER + negative
            if not self.codeword.bin(self.contexts[context + 2 * j]):
                return magnitude
            magnitude += 1
        if magnitude < largest:
            magnitude += self.decode_remainder(largest - magnitude)
        return magnitude

    def decode_remainder(self, largest: int) -> int:
        smallest = k = 0
        while (k < PREFIX_BINS and smallest + (1 << k) <= largest
               and self.codeword.bin(self.contexts[self.prefix + k])):
            smallest += 1 << k
            k += 1
        return smallest + self.codeword.bypass(k)


# ---- Dependent quantization ---------------------------------------------------------------------

NEXT_STATE = ((0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6))


def dependent_index(k: int, state: int) -> int:
    """Even states have the even multiples of the step, odd ones the odd ones and 0. k is not 0."""
    odd = state & 1
    return 2 * k - odd if k > 0 else 2 * k + odd


# ---- Reconstruction -----------------------------------------------------------------------------

def reconstruct(integers: np.ndarray, qp_delta: int | None, stream: Bitstream,
                codebook: Codebook | None) -> np.ndarray:
    if qp_delta is None:
        return integers
    density, qp = stream.quantization[0], stream.quantization[1] + qp_delta
    exponent = qp >> density
    require(-126 <= exponent <= 127, "a quantization step is not a normal binary32 number")
    step = math.ldexp((1 << density) + (qp & ((1 << density) - 1)), exponent - density)
    with np.errstate(over="ignore"):  # a product may be infinite
        if codebook:
            values = np.array(codebook.values, np.float64)[integers + codebook.zero_offset]
            return (values * step).astype(np.float32)
        return integers.astype(np.float32) * np.float32(step)


def data_format(values: np.ndarray, header: DataUnitHeader) -> type:
    """The type of the result, which integers must fit."""
    if header.payload_type == INT:
        require(header.data_format is None or header.data_format in INTEGER_FORMATS,
                "an INT tensor has a data format that is reserved or no integer's")
        bits, dtype = INTEGER_FORMATS[header.data_format or 0]
        require(-(1 << (bits - 1)) <= int(values.min()) and int(values.max()) < 1 << (bits - 1),
                "an integer does not fit its data format")
        return dtype
    require(header.data_format is None or header.data_format in FLOAT_FORMATS,
            "a tensor of floats has a data format that is reserved or an integer's")
    return FLOAT_FORMATS[header.data_format or 1]


def converted(values: np.ndarray, dtype: type) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large for the type becomes infinite
        return values.astype(dtype)


def assemble(tensors: dict[str, Tensor], factors: bool) -> dict[str, np.ndarray]:
    """The tensors by name, with the product G.H of decomposed ones under the dense name."""
    result = {}
    for name, (values, dtype, _, dense_shape) in tensors.items():
        dense, g, h = name[:-2], tensors.get(name[:-2] + "_G"), tensors.get(name[:-2] + "_H")
        if dense_shape is None or factors:
            result[name] = converted(values, dtype)
        if dense_shape is None:
            continue
        require(g is not None and h is not None and g.dense_shape == h.dense_shape == dense_shape
                and g.values.shape[1] == h.values.shape[0], f"the factors of {dense!r} do not fit")
        require(dense not in tensors, f"the tensor {dense!r} occurs twice")
        if name.endswith("_G"):
            result[dense] = converted(product(g.values, h.values), dtype).reshape(dense_shape)
    return result


def product(g: np.ndarray, h: np.ndarray) -> np.ndarray:
    """G.H, summed in binary64 in the order of the rank, rounded once: the same bits everywhere."""
    total = np.zeros((len(g), h.shape[1]), np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for column, row in zip(g.T.astype(np.float64), h.astype(np.float64), strict=True):
            total += np.outer(column, row)
        return total.astype(np.float32)


# ---- Updates ------------------------------------------------------------------------------------

class Series:
    """The integers of the earlier bitstreams of a series."""

    def __init__(self) -> None:
        self.length = 0
        self.latest: dict[str, np.ndarray] = {}  # of the last bitstream that held the tensor
        self.history: dict[str, np.ndarray] = {}  # where any bitstream had something other than 0

    def append(self, tensors: dict[str, Tensor]) -> None:
        self.length += 1
        for name, (_, _, integers, _) in tensors.items():
            if integers is not None:
                before = self.history.get(name, np.zeros(integers.shape, bool))
                require(before.shape == integers.shape, f"{name!r} changes its shape in the series")
                self.latest[name], self.history[name] = integers, before | (integers != 0)

    def base(self, name: str, shape: tuple[int, ...]) -> list[int]:
        require(name in self.latest, f"the parent of {name!r} is missing")
        return self.in_scan(self.latest[name], name, shape)

    def seen(self, name: str, shape: tuple[int, ...], put_node_depth: int | None) -> list[bool]:
        # The first update's parent is the receiver's own model, which is in no bitstream.
        require(self.length > 0 or put_node_depth == 1, f"the parents of {name!r} are missing")
        return self.in_scan(self.history[name], name, shape) if name in self.history else []

    @staticmethod
    def in_scan(array: np.ndarray, name: str, shape: tuple[int, ...]) -> list:
        require(array.shape == shape, f"{name!r} has another shape than in the bitstreams before")
        return array.ravel().tolist()


# ---- Command line -------------------------------------------------------------------------------

def main() -> int:
    parser = argparse.ArgumentParser(description="Decode an NNR bitstream.")
    parser.add_argument("input", metavar="IN.nnr")
    parser.add_argument("output", metavar="OUT.npz")
    parser.add_argument("--parents", nargs="*", default=[], help="earlier bitstreams, oldest first")
    parser.add_argument("--factors", action="store_true", help="write the factors G and H as well")
    options = parser.parse_args()
    *parents, data = [Path(path).read_bytes() for path in [*options.parents, options.input]]
    try:
        tensors = decode(data, parents, options.factors)
    except ValueError as error:
        print(f"{options.input}: {error}", file=sys.stderr)
        return 3
    with zipfile.ZipFile(options.output, "w") as archive:  # numpy.savez cannot write every name
        for name, tensor in tensors.items():
            with archive.open(name + ".npy", "w") as file:
                np.lib.format.write_array(file, tensor)
    return 0


if __name__ == "__main__":
    sys.exit(main())
