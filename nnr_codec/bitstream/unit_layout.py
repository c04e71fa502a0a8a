"""How a data unit's header lays out the tensors of its codeword, for decoder and encoder alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._core import TensorSyntax
from . import Codebook, Context, DataUnit, PayloadType

Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ParentData:
    """What contexts use of the earlier streams of a series, for one tensor.

    Attributes:
        integers: int32 of the stream before, one per element; None if all are zero.
        history: uint8, non-zero where the tensor's integer was non-zero in any earlier stream;
            None if it was so nowhere.
    """

    integers: Integers | None = None
    history: npt.NDArray[np.uint8] | None = None


ParentLookup = Callable[[str, int], ParentData]
"""Gives a tensor's data of the earlier streams, by its name and element count."""


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """One tensor of a data unit.

    Attributes:
        name: its name (of a unit with indexed references: the index as text).
        role: "weight", "G", "H", "local_scaling", "bias", "beta", "gamma", "mean" or "var".
        shape: its dimensions.
        syntax: what the core needs to code it.
        codebook: the codebook its integers are indices of, or None.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    syntax: TensorSyntax
    codebook: Codebook | None


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, cols) of the matrix that a tensor is coded as."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def tensor_layouts(
    record: DataUnit, context: Context, parent_data: ParentLookup | None = None
) -> list[TensorLayout]:
    """Return the tensors of a data unit in the order in which its codeword holds them.

    Args:
        record: the header, with dimensions.
        context: the profile and parameter sets in force.
        parent_data: called for the tensors of a unit that has a parent; None: as without one.
    """
    names = dict(zip(record.name_roles(), record.names, strict=True))
    layouts = []
    for role in record.coding_roles():
        name = names[role]
        shape = role_shape(record, role)
        rows, cols = matrix_shape(shape)
        has_codebook = bool(record.codebooks) and role in ("weight", "G", "H")
        codebook = record.codebooks[role == "H"] if has_codebook else None
        earlier = ParentData()
        if record.parent is not None and parent_data is not None:
            earlier = parent_data(name, rows * cols)
        syntax = TensorSyntax(
            rows,
            cols,
            unary_length=record.unary_length,
            dependent_quantization=bool(record.dq_flag) and record.payload_type != PayloadType.INT,
            scan_order=record.scan_order,
            second_edition=context.profile == 1,
            codebook_size=len(codebook.values) if codebook else 0,
            codebook_zero_offset=codebook.zero_offset if codebook else 0,
            parent_present=record.parent is not None,
            temporal_contexts=bool(record.parent and record.parent.temporal_context_modeling_flag),
            parent=earlier.integers,
            history=earlier.history,
        )
        layouts.append(TensorLayout(name, role, shape, syntax, codebook))
    return layouts


def role_shape(record: DataUnit, role: str) -> tuple[int, ...]:
    """Return the shape of a unit's tensor of a role; "dense": that of the product of G and H."""
    if role == "dense":
        return tuple(record.tensor_dimensions or ())
    if role in ("weight", "G", "H"):
        return record.weight_shapes()[role == "H"]
    dimensions = record.tensor_dimensions or []
    return tuple(dimensions[:1])  # the vectors of a block have one element per output channel
