"""What a bitstream may ask of the decoder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecodeLimits:
    """What a bitstream may ask of the decoder; exceeding one raises ``LimitExceeded``.

    Attributes:
        max_elements_per_tensor: elements of one decoded tensor.
        max_elements: elements of all decoded tensors together.
        max_units: units of one bitstream.
        max_stream_bytes: bytes of one bitstream.
        max_unit_bytes: bytes of one unit (the format allows 2**31 - 1).
        max_name_bytes: UTF-8 bytes of one string (topology data excepted).
        max_dimensions: dimensions of one tensor.
        max_header_entries: what the headers of all units are kept as: a unit counts 16, and each
            name, dimension, entry of a codebook and entry point in it 1. Likewise the tensors of a
            model times the updates that made it.
        max_topology_bytes: bytes of the topology data (and of a model map in it) and of the
            quantization data, of all units together.
        max_product_operations: multiplications of one product of factors (rank times elements).
        max_all_product_operations: those of all products together; of a base and its updates, of
            all that the model is made of.
    """

    max_elements_per_tensor: int = 2**30
    max_elements: int = 2**31
    max_units: int = 2**20
    max_stream_bytes: int = 2**35
    max_unit_bytes: int = 2**31 - 1
    max_name_bytes: int = 4096
    max_dimensions: int = 32
    max_header_entries: int = 2**24
    max_topology_bytes: int = 2**23
    max_product_operations: int = 2**37
    max_all_product_operations: int = 2**40
