"""Bitstreams for the corpus made by hand: headers as records, integers as lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .arithmetic_encoder import ArithmeticEncoder
from .bits import Record
from .coded_tensor import TensorCoding, coding_of, write_tensor
from .random_tensors import UnitPlan
from .syntax import (
    BLOCK,
    FLOAT,
    INT,
    NNR_LPS,
    NNR_MPS,
    NNR_NDU,
    NNR_STR,
    NNR_TPL,
    unit_of,
)

MPS: Record = {
    "mps_quantization_method_flags": 1,
    "mps_qp_density": 2,
    "mps_quantization_parameter": -8,
}
"""The step is a quarter with qp_delta 0."""

SIGNALLING: Record = {"mps_parent_signalling_enabled_flag": 1}


@dataclass
class Coded:
    """One tensor's integers v, in the order of the scan where they are drawn; and its choices."""

    v: Sequence[int]
    qp_delta: int = 0
    index: int = 0
    base: Sequence[int] | None = None
    history: Sequence[bool] | None = None
    skipped: Sequence[bool] | None = None

    def write(self, encoder: ArithmeticEncoder, coding: TensorCoding) -> list[int]:
        """Write the tensor; return its indices q."""
        coding.base, coding.history, coding.skipped = self.base, self.history, self.skipped
        return write_tensor(encoder, coding, lambda _: self.index, lambda place, _: self.v[place])


Values = Sequence[int] | Coded


@dataclass
class DataUnit:
    """A data unit to be made, and what is to be wrong with it.

    Attributes:
        tensors: in the order of the payload, integers alone or with choices.
        header: elements that differ from those that follow from the plan.
        entries: what entry points are to say instead: their numbers, and elements.
        payload: in place of the codeword; or a function of it.
        q: the indices that were coded, by name, once the unit is made.
        points: the entry points of the codeword, once the unit is made.
    """

    plan: UnitPlan
    tensors: Sequence[Values]
    header: Record = field(default_factory=dict)
    entries: dict[int, Record] = field(default_factory=dict)
    payload: Any = None
    terminating_bin: int = 1
    unit_header: dict[str, int] = field(default_factory=dict)
    q: dict[str, list[int]] = field(default_factory=dict)
    points: list[dict[str, int]] = field(default_factory=list)

    def bytes(self, profile: int = 0, mps: Record = MPS) -> bytes:
        record = {**self.plan.record(), **self.header}
        encoder = ArithmeticEncoder()
        for (name, shape, role), values in zip(self.plan.coded(), self.tensors, strict=True):
            coded = values if isinstance(values, Coded) else Coded(values)
            if self.plan.payload != INT:
                bits = 6 + mps["mps_qp_density"]
                encoder.bypass(coded.qp_delta & (1 << bits) - 1, bits)
            self.q[name] = coded.write(encoder, coding_of(record, shape, role, profile))
        word = encoder.finish(self.terminating_bin)
        self.points = encoder.entry_points(word)
        points = list(self.points)
        for number, elements in self.entries.items():
            points += [{}] * (number + 1 - len(points))
            points[number] = {**points[number], **elements}
        record.setdefault("entry_points", points)
        if self.payload is not None:
            word = self.payload(word) if callable(self.payload) else self.payload
        return unit_of(NNR_NDU, record, profile, mps, payload=word, **self.unit_header)


def floats(v: Values, shape: Sequence[int], name: str = "w", **header: Any) -> DataUnit:
    return DataUnit(UnitPlan(FLOAT, (name,), tuple(shape)), [v], header)


def integers(v: Values, shape: Sequence[int], name: str = "i", **header: Any) -> DataUnit:
    return DataUnit(UnitPlan(INT, (name,), tuple(shape)), [v], header)


def block(
    names: Sequence[str],
    shape: Sequence[int],
    types: int,
    tensors: Sequence[Values],
    rank: int = 0,
    g_rows: int = 0,
    /,
    **header: Any,
) -> DataUnit:
    """A BLOCK unit; its integers in the order of the payload."""
    plan = UnitPlan(BLOCK, tuple(names), tuple(shape), types, rank, g_rows)
    return DataUnit(plan, tensors, header)


def with_codebook(values: list[int], zero_offset: int, **more: int) -> Record:
    book = {"values": values, "zero_offset": zero_offset, **more}
    return {"codebook_present_flag": 1, "codebook": book}


def with_format(number: int) -> Record:
    name = "nnr_decompressed_data_format"
    return {f"{name}_present_flag": 1, name: number}


def start(profile: int = 0) -> bytes:
    return unit_of(NNR_STR, {"general_profile_idc": profile})


def parameters(profile: int = 0, **mps: Any) -> bytes:
    """The model parameter set, with these elements in place of those of `MPS`."""
    return unit_of(NNR_MPS, {**MPS, **mps}, profile)


def layer_parameters(**lps: Any) -> bytes:
    return unit_of(NNR_LPS, lps)


def topology(**record: Any) -> bytes:
    return unit_of(NNR_TPL, record)


def stream(*units: DataUnit | bytes, profile: int = 0, **mps: Any) -> bytes:
    """A stream of these units behind start unit and model parameter set."""
    made = [u if isinstance(u, bytes) else u.bytes(profile, {**MPS, **mps}) for u in units]
    return start(profile) + parameters(profile, **mps) + b"".join(made)


def ramp(count: int, modulus: int = 7, zeros: int = 0) -> list[int]:
    """Small numbers of both signs; with `zeros`, all but one of so many are 0."""
    numbers = [(i * 7919 + 13) // 3 % modulus - modulus // 2 for i in range(count)]
    return [0 if zeros and i * 31 % zeros else v for i, v in enumerate(numbers)]
