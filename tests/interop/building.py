"""Bitstreams out of headers and random integers, for what our encoder of models does not write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnr_codec.bitstream import (
    Codebook,
    Context,
    DataUnit,
    ModelParameterSet,
    ParameterTypes,
    PayloadType,
    StartUnit,
    Topology,
    write_record,
)
from nnr_codec.encoding.unit_encoder import CodedLevels, encode_data_unit

Levels = npt.NDArray[np.int32]


def head(context: Context) -> bytes:
    """The units before the data units."""
    mps = context.mps or ModelParameterSet()
    start = write_record(StartUnit(context.profile)) + write_record(mps, context.profile)
    return start + write_record(Topology())


def block_names(types: int, stem: str = "layer") -> list[str]:
    """The names of a BLOCK with these compressed_parameter_types, in the order of its header."""
    names = (
        [f"{stem}.weight_G", f"{stem}.weight_H"]
        if types & ParameterTypes.DC
        else [f"{stem}.weight"]
    )
    names += [f"{stem}.weight_scaling"] if types & ParameterTypes.LS else []
    if types & ParameterTypes.BN:
        names += [f"{stem}.bn.{part}" for part in ("beta", "gamma", "mean", "var")]
    return names + ([f"{stem}.bias"] if types & ParameterTypes.BI else [])


def role_shape(record: DataUnit, role: str) -> tuple[int, ...]:
    """The shape of one tensor of a unit."""
    if role in ("G", "H"):
        return record.factor_shapes()["GH".index(role)]
    dimensions = tuple(record.tensor_dimensions or ())
    return dimensions if role == "weight" else dimensions[:1]


def random_levels(
    rng: np.random.Generator,
    shape: Sequence[int],
    spread: float,
    codebook: Codebook | None = None,
) -> Levels:
    """Integers of a Laplace distribution; with a codebook, indices inside it; rows of zeros too."""
    values = np.rint(rng.laplace(0.0, spread, math.prod(shape))).astype(np.int64)
    rows = values.reshape(shape[0], -1)
    rows[rng.random(shape[0]) < 0.25] = 0
    if codebook is not None:
        past = len(codebook.values) - codebook.zero_offset - 1
        rows = rows.clip(-codebook.zero_offset, past)
    return rows.reshape(-1).astype(np.int32)


def unit(record: DataUnit, levels: Mapping[str, Levels], context: Context, **choices: Any) -> bytes:
    """The data unit of `record`; `choices` are those of ``CodedLevels`` for all of its tensors."""
    coded = {role: CodedLevels(values, **choices) for role, values in levels.items()}
    return encode_data_unit(record, coded, context)


def floats(name: str, shape: Sequence[int], **fields: Any) -> DataUnit:
    """The header of a FLOAT unit."""
    return DataUnit(PayloadType.FLOAT, [name], tensor_dimensions=list(shape), **fields)
