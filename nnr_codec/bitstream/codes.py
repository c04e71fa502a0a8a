"""The coded values of the format's enumerated syntax elements (spec/bitstream.md)."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class UnitType(IntEnum):
    """nnr_unit_type; 7 to 31 are reserved, 32 to 63 for private use."""

    NNR_STR = 0
    NNR_MPS = 1
    NNR_LPS = 2
    NNR_TPL = 3
    NNR_QNT = 4
    NNR_NDU = 5
    NNR_AGG = 6


FIRST_PRIVATE_UNIT_TYPE = 32

QUANTIZATION_METHODS = 3
"""Bits of the quantization method flags with which density and quantization parameter come."""


class PayloadType(IntEnum):
    """nnr_compressed_data_unit_payload_type."""

    INT = 0
    FLOAT = 1
    RAW_FLOAT = 2
    BLOCK = 3


class ParameterTypes(IntFlag):
    """compressed_parameter_types: what a BLOCK holds besides its weight, and in which form."""

    NONE = 0
    DC = 1
    """the weight is decomposed into G and H"""
    LS = 2
    """local scaling"""
    BN = 4
    """batch norm: beta, gamma, mean, var"""
    BI = 8
    """bias"""


class DataFormat(IntEnum):
    """nnr_decompressed_data_format."""

    INT32 = 0
    FLOAT32 = 1
    INT2 = 2
    INT3 = 3
    INT4 = 4
    INT8 = 5
    INT16 = 6
    INT64 = 7
    FLOAT16 = 8
    FLOAT64 = 9


class ParentType(IntEnum):
    """parent_node_id_type."""

    ICNN_NDU_ID = 0
    PAYLOAD_SHA256 = 1
    PAYLOAD_SHA512 = 2


class TopologyFormat(IntEnum):
    """topology_storage_format."""

    UNREC = 0
    NNEF = 1
    ONNX = 2
    PYT = 3
    TEF = 4
    PRUN = 5
    REFLIST = 6


class CompressionFormat(IntEnum):
    """topology_compression_format and quantization_compression_format."""

    RAW = 0
    DEFLATE = 1
