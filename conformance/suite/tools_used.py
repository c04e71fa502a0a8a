"""Which tools of the format a bitstream uses, in words, as its headers say."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import Any

from ..generator.bits import EndOfUnit
from ..generator.syntax import read_units

PAYLOADS = ("INT", "FLOAT", "RAW_FLOAT", "BLOCK")
FORMATS = ("INT32", "FLOAT32", "INT2", "INT3", "INT4", "INT8", "INT16", "INT64", "FLOAT16",
           "FLOAT64")  # fmt: skip
PARAMETERS = {1: "DC", 2: "LS", 4: "BN", 8: "BI"}
FLAGS = {
    "codebook_present_flag": "codebooks",
    "dq_flag": "dependent quantization",
    "parent_node_id_present_flag": "parents",
    "temporal_context_modeling_flag": "temporal contexts",
    "mps_topology_indexed_reference_flag": "indexed names",
    "mps_sparsification_flag": "performance maps",
    "mps_pruning_flag": "performance maps",
    "mps_unification_flag": "performance maps",
    "mps_decomposition_performance_map_flag": "performance maps",
    "cabac_unary_length_flag": "unary lengths",
    "topology_compression_format": "deflated topology",
}
UNITS = {3: "topology", 2: "layer parameters", 4: "quantization data"}
FIRST_PRIVATE = 32


def tools_of(stream: bytes) -> list[str]:
    """Return the tools of a bitstream, of one that cannot be read those before that."""
    values: dict[str, set[Any]] = defaultdict(set)
    with suppress(EndOfUnit, IndexError, KeyError, ZeroDivisionError):
        read_units(stream, lambda name, value: values[name].add(value))
    types = values["nnr_unit_type"]
    parameters = {bit for flags in values["compressed_parameter_types"] for bit in PARAMETERS
                  if flags & bit}  # fmt: skip
    scans = sorted(values["scan_order"] - {0})
    tools = [f"profile {max(values['general_profile_idc'], default=0)}"]
    tools += [PAYLOADS[kind] for kind in sorted(values["nnr_compressed_data_unit_payload_type"])]
    tools += [PARAMETERS[bit] for bit in sorted(parameters)]
    tools += dict.fromkeys(text for name, text in FLAGS.items() if max(values[name], default=0))
    tools += [f"scan order {' and '.join(map(str, scans))}"] if scans else []
    tools += [FORMATS[kind] for kind in sorted(values["nnr_decompressed_data_format"])]
    tools += [text for kind, text in UNITS.items() if kind in types]
    tools += ["private units"] if any(kind >= FIRST_PRIVATE for kind in types) else []
    return tools
