"""Encoding of one bitstream as it is planned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

from ..bitstream import StartUnit, Topology, write_record
from ..report import TensorReport
from ..support.ordered_calls import has_threads
from .arrangement.grouping import SAVED_BYTES
from .plan import StreamPlan
from .tensor_encoder import encode_unit
from .tensor_quantizer import QuantizedFactor
from .tensor_work import results_of
from .work import Work

_NODE_ID_BYTES = 2
"""What a data unit of profile 1 has more than one of profile 0."""

_WORTH_ENCODING_AGAIN = 0.005
"""The part of a stream that must be there to be saved."""


@dataclass(slots=True)
class Draft:
    """A whole stream that was encoded, and may be kept.

    Attributes:
        file: the stream.
        profile: general_profile_idc.
        header_bytes: bytes of the units that hold no tensor.
        tensors: reports of the coded tensors, in the stream's order.
        factors: those of the coded tensors that are factors and do not come back exactly, by name.
        skippable_bytes: about what row skipping would have saved, had the profile allowed it, less
            what that profile costs.
        qp_offset: what was added to every qp to reach a target.
        compared: whether it was made in the other profile as well, in which it is larger.
        notes: sentences about what is not as one may expect.
    """

    file: BinaryIO
    profile: int
    header_bytes: int = 0
    tensors: list[TensorReport] = field(default_factory=list)
    factors: dict[str, QuantizedFactor] = field(default_factory=dict)
    skippable_bytes: float = 0.0
    qp_offset: int = 0
    compared: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of the stream."""
        return self.header_bytes + sum(report.bytes for report in self.tensors)

    @property
    def nmse(self) -> float:
        """Squared error over energy, of all coded tensors together; of factors theirs."""
        error = sum(report.squared_error for report in self.tensors)
        return error / sum(report.energy for report in self.tensors) if error else 0.0

    @property
    def promises_rows(self) -> bool:
        """Whether profile 1 seems to be the smaller, as it can skip rows."""
        return self.profile == 0 and self.skippable_bytes > 0


def encode_stream(
    plan: StreamPlan,
    file: BinaryIO,
    explain: Callable[[TensorReport], TensorReport],
    work: Work,
) -> Draft:
    """Encode a stream.

    Args:
        plan: the stream's.
        file: where the stream goes.
        explain: adds to a coded tensor's report why it is coded so.
        work: encodes units side by side, and is told when tensors are "quantized" and "coded".

    Raises:
        InvalidModel: a tensor cannot be coded.
    """
    profile = plan.context.profile
    records = StartUnit(profile), plan.context.mps, Topology(topology_data=plan.map_text)
    head = b"".join(write_record(record, profile) for record in records if record is not None)
    file.write(head)
    draft = Draft(file, profile, len(head))
    # Other processes tell nothing before they are done.
    is_told = work.executor is None or has_threads(work.executor)
    encode = partial(encode_unit, plan.context, on_stage=work.on_stage if is_told else None)
    results = results_of(work.executor, encode, plan.units)
    for unit, encoded in zip(plan.units, results, strict=True):
        file.write(encoded.data)
        reports = [explain(report) for report in encoded.reports]
        draft.tensors += reports
        draft.factors |= encoded.factors
        draft.skippable_bytes += encoded.skippable_bytes
        if not is_told:
            work.tell("quantized", unit.elements)
        work.tell("coded", unit.elements)
        for report in reports:
            work.tell_coded(report)
    vectors = len(draft.tensors) - len(plan.units)
    cost: float = _NODE_ID_BYTES * len(draft.tensors) + SAVED_BYTES * vectors
    cost += _WORTH_ENCODING_AGAIN * sum(report.bytes for report in draft.tensors)
    draft.skippable_bytes -= cost
    return draft
