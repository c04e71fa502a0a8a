"""Random records of the units around the data units, and of codebooks: all of them valid."""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

from .bits import Record
from .syntax import (
    MAPS,
    NNEF,
    NNR_QNT,
    NNR_TPL,
    ONNX,
    PYT,
    REFLIST,
    TEF,
    UNREC,
    named,
    unit,
    unit_of,
)

WORDS = ["net", "größe", "layer 4", "β", "(conv → relu)", "", "0"]


class Draws:
    """A source of choices. The same seed gives the same ones in every version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, n: int) -> int:
        """0 to n - 1."""
        return int(self._random.random() * n)

    def between(self, first: int, last: int) -> int:
        """`first` to `last`, both included."""
        return first + self.below(last - first + 1)

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return self._random.random() < probability

    def of(self, *values: Any) -> Any:
        """One of the values."""
        return values[self.below(len(values))]

    def laplace(self, spread: float) -> int:
        """A whole number of either sign, of about the size `spread`."""
        return round(self.of(-1, 1) * spread * self._random.expovariate(1.0))

    def number(self) -> float:
        """A binary32 number."""
        return float(struct.unpack("<f", struct.pack("<f", self._random.uniform(-4, 4)))[0])

    def bits(self, n: int) -> int:
        """n random bits."""
        return sum(self.below(2) << i for i in range(n))


def map_entry(d: Draws, prefix: str, *numbers: str) -> Record:
    """An entry of a performance map: numbers, and the accuracies of classes."""
    return {
        **{name: d.number() for name in (*numbers, f"{prefix}_nn_accuracy")},
        f"{prefix}_count_classes": d.of(0, 1, 3),
        f"{prefix}_class_bitmask": d.of(0, 5, 1000),
        f"{prefix}_nn_class_accuracy": d.number(),
    }


def unification_entry(d: Draws) -> Record:
    return {
        "count_reshaped_tensor_dimension": d.of(1, 3),
        "reshaped_tensor_dimension": d.of(1, 300),
        "count_super_block_dimension": d.of(1, 2),
        "super_block_dimension": 8,
        "count_block_dimension": d.of(1, 3),
        "block_dimension": 4,
        **map_entry(d, "upm", "unification_threshold"),
    }


def performance_maps(d: Draws, prefix: str, entries: bool) -> Record:
    """Flags and maps of sparsification, pruning, unification, each in half of the cases.

    Without `entries` the maps are empty.
    """
    record: Record = {f"{prefix}_{kind}_flag": d.below(2) for kind in MAPS}
    makers = (
        lambda: map_entry(d, "spm", "sparsification_threshold", "non_zero_ratio"),
        lambda: map_entry(d, "ppm", "pruning_ratio"),
        lambda: unification_entry(d),
    )
    count = d.of(1, 2) if entries else 0
    for kind, make in zip(MAPS, makers, strict=True):
        record[f"{kind}_performance_map"] = [make() for _ in range(count)]
    return record


def quantization(d: Draws, prefix: str) -> Record:
    """A density and a quantization parameter whose step is between 2^-20 and 2^4."""
    density = d.of(0, 1, 2, 2, 3, 4, 5, 6, 7)
    parameter = max(min(d.between(-20 << density, 4 << density), 4095), -4096)
    return {
        f"{prefix}_quantization_method_flags": d.between(1, 3),
        f"{prefix}_qp_density": density,
        f"{prefix}_quantization_parameter": parameter,
    }


def model_parameter_set(d: Draws, profile: int, common: bool, series: bool) -> Record:
    """An MPS, always with a quantization parameter."""
    record = {"topology_carriage_flag": d.below(2), **quantization(d, "mps")}
    if d.chance(0.3):
        record |= performance_maps(d, "mps", not common)
    if d.chance(0.3):
        record["mps_decomposition_performance_map_flag"] = 1
        numbers = "mse_threshold dpm_nn_accuracy nn_reduction_ratio dpm_nn_class_accuracy"
        entry = {"dpm_count_classes": d.of(0, 2), **{name: d.number() for name in numbers.split()}}
        record["decomposition_performance_map"] = [] if common else [entry]
    if profile == 1:
        record["mps_parent_signalling_enabled_flag"] = int(series) or d.below(2)
        record["nnr_pre_flag"] = d.below(2) & record["mps_parent_signalling_enabled_flag"]
        if not common:
            record["base_model_id_present_flag"] = d.below(2)
            record["validation_set_performance_present_flag"] = d.below(2)
            record["metric_type_performance_map_valid_flag"] = d.below(2)
            record["base_model_id"], record["performance_metric_type"] = d.of(*WORDS), "top-1"
            record["validation_set_performance"] = d.number()
    return record


def layer_parameter_set(d: Draws) -> Record:
    """An LPS, with a quantization parameter or without."""
    record = {"lps_self_contained_flag": d.below(2), **performance_maps(d, "lps", True)}
    if d.chance(0.7):
        record |= quantization(d, "lps")
    return record


def topology(d: Draws, common: bool) -> bytes:
    """A topology unit that gives no names."""
    storage = d.of(UNREC, PYT, TEF) if common else d.of(UNREC, NNEF, ONNX, PYT, TEF)
    text = d.of(*WORDS)
    record: Record = {"topology_storage_format": storage, "topology_data": text}
    deflated = not common and d.chance(0.3)
    if deflated or storage in (NNEF, ONNX):
        record["topology_compression_format"] = int(deflated)
        record["topology_data"] = (
            zlib.compress(text.encode()) if deflated else b"\0\1" + b"\xff" * 9
        )
    return unit_of(NNR_TPL, record)


def reference_list(names: list[str]) -> bytes:
    """The topology unit that names are indices into."""
    return unit_of(NNR_TPL, {"topology_storage_format": REFLIST, "names": named(*names)})


def quantization_data(d: Draws) -> bytes:
    deflated = d.below(2)
    data = zlib.compress(b"scales") if deflated else d.of(*WORDS)
    record = {
        "quantization_storage_format": d.below(3),
        "quantization_compression_format": deflated,
        "quantization_data": data,
    }
    return unit_of(NNR_QNT, record)


def private_unit(d: Draws) -> bytes:
    """A unit that decoders pass over, split or not."""
    content = bytes(d.below(256) for _ in range(d.below(9)))
    split = {"partial_data_counter_present_flag": 1, "partial_data_counter": 3}
    return unit(d.of(32, 63), content, **(split if d.chance(0.5) else {}))


def codebook(d: Draws) -> Record:
    """A codebook of any size and zero_offset, wide ones of 32 bits included."""
    size = d.of(1, 2, 3, 4, 9, 20, 33)
    zero = d.of(0, size // 2, size - 1, d.below(size))
    wide = d.chance(0.1) and size > 1
    values = [d.between(-300, 100)]
    for _ in range(size - 1):
        values.append(values[-1] + 1 + d.of(0, 0, 1, d.below(40)))
    egk = d.below(16)
    if wide:  # only order 0 has codes for such steps, and order 7 has none for all of 32 bits
        values, egk = [-(1 << 31), *values[1:-1], (1 << 31) - 1], 0
        values[zero] = max(min(values[zero], (1 << 31) - 65), 65 - (1 << 31))
    return {"codebook_egk": egk, "zero_offset": zero, "values": values}
