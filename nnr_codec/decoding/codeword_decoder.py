"""Decoding of one data unit's codeword: bits to integers, block rows side by side."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._core import BlockRowDecoder, DecodeStatus, decode_codeword
from ..bitstream import DataUnit, ParsedUnit, PayloadType
from ..bitstream.lazy_bytes import loaded
from ..bitstream.qp import qp_delta_bits
from ..bitstream.unit_layout import Integers, ParentData, TensorLayout, tensor_layouts
from ..errors import InvalidBitstream, MissingParent, TruncatedBitstream
from ..support.ordered_calls import has_threads
from .series import Series

_REASONS = {
    DecodeStatus.INTEGER_OVERFLOW: "an integer does not fit 32 bits",
    DecodeStatus.ENTRY_POINT_MISMATCH: "an entry point differs from what its block row starts with",
    DecodeStatus.NOT_TERMINATED: "the codeword does not end where its integers do",
    DecodeStatus.BAD_STOP_BIT: "no stop bit at the codeword's end",
    DecodeStatus.VALUE_OUT_OF_RANGE: "the codeword is none that an encoder writes",
    DecodeStatus.TRAILING_BYTES: "bytes are left behind the codeword",
}

_RUNS = 16
"""Jobs that the block rows of a tensor are dealt out to: enough for a few threads each."""


@dataclass(frozen=True, slots=True)
class CodedTensor:
    """A tensor as the core gives it back.

    Attributes:
        layout: how the header describes it.
        qp_delta: its quantization parameter less that of the parameter sets; 0 for INT.
        integers: after the doubling of dependent quantization, int32, flat.
    """

    layout: TensorLayout
    qp_delta: int
    integers: Integers


class CodewordDecoder:
    """Decodes the codeword of one data unit."""

    def __init__(self, parsed: ParsedUnit, record: DataUnit, series: Series) -> None:
        """`record`: the unit's header; `series`: the earlier streams."""
        self._parsed = parsed
        self._record = record
        self._series = series

    def layouts(self) -> list[TensorLayout]:
        """Return the unit's tensors in the order of their integers."""
        return tensor_layouts(self._record, self._parsed.context, self._parent_data)

    def decode(self, executor: Executor | None) -> list[CodedTensor]:
        """Decode the codeword.

        Args:
            executor: if its workers are threads, they decode block rows side by side.

        Raises:
            BitstreamError: it is damaged, or needs a missing parent.
        """
        layouts = self.layouts()
        if self._record.parent is not None and self._record.parent.temporal_context_modeling_flag:
            self._require_parents(layouts)
        density, _ = self._parsed.context.quantization or (0, 0)
        bits = 0 if self._record.payload_type == PayloadType.INT else qp_delta_bits(density)
        payload = np.frombuffer(loaded(self._parsed.payload), dtype=np.uint8)
        # Block rows share their output's memory: threads alone can do that.
        threads = executor if has_threads(executor) else None
        if threads and len(layouts) == 1 and layouts[0].syntax.block_rows > 1:
            tensors = [self._decode_block_rows(payload, layouts[0], bits, threads)]
        else:
            syntaxes = [layout.syntax for layout in layouts]
            status, tensors = decode_codeword(payload, syntaxes, bits, self._entries(layouts))
            if any(history_enabled for _, history_enabled, _ in tensors):
                self._require_parents(layouts)  # without history, the codeword is misread
            self._check(status)
        pairs = zip(layouts, tensors, strict=True)
        return [CodedTensor(layout, delta, integers) for layout, (delta, _, integers) in pairs]

    def _entries(self, layouts: list[TensorLayout]) -> list[tuple[int, int, int]]:
        """Return the entry points that block rows answer to.

        A matrix of one column has entries too, which say nothing: it is scanned row by row.
        """
        rest = [(e.offset, e.value8, e.dq_state) for e in self._record.entry_points]
        if not rest:
            return []
        entries = []
        for layout in layouts[-len(self._record.weight_shapes()) :]:
            count = -(-layout.shape[0] // (4 << self._record.scan_order)) - 1
            if layout.syntax.block_rows > 1:
                entries += rest[:count]
            rest = rest[count:]
        return entries

    def _decode_block_rows(
        self, payload: npt.NDArray[np.uint8], layout: TensorLayout, bits: int, executor: Executor
    ) -> tuple[int, bool, Integers]:
        """Decode a tensor's block rows side by side, and compare all of them with their entries."""
        decoder = BlockRowDecoder(payload, layout.syntax, bits)
        if decoder.history_enabled:
            self._require_parents([layout])
        self._check(decoder.status)
        starts = [(decoder.start_position, 0, 0)]
        for entry in self._record.entry_points:
            starts.append((starts[-1][0] + entry.offset, entry.value8, entry.dq_state))
        if starts[-1][0] > 8 * len(payload):
            raise self.invalid(_REASONS[DecodeStatus.ENTRY_POINT_MISMATCH])
        count = len(starts)
        run = -(-count // _RUNS)
        firsts = range(0, count, run)
        jobs = [
            executor.submit(decoder.decode, first, min(first + run, count), starts[first])
            for first in firsts
        ]
        # What no thread has begun is done here: with all of them waiting like us, none would.
        results = [
            decoder.decode(first, min(first + run, count), starts[first])
            if job.cancel()
            else job.result()
            for first, job in zip(firsts, jobs, strict=True)
        ]
        for first, (status, ends) in zip(firsts, results, strict=True):
            if ends != starts[first + 1 : first + 1 + len(ends)]:
                raise self.invalid(_REASONS[DecodeStatus.ENTRY_POINT_MISMATCH])
            self._check(status)
        return decoder.qp_delta, decoder.history_enabled, decoder.integers

    def _parent_data(self, name: str, elements: int) -> ParentData:
        unit = self._parsed.unit
        return self._series.parent_data(name, elements, label=unit.label, offset=unit.byte_offset)

    def _require_parents(self, layouts: list[TensorLayout]) -> None:
        """Raise the error of a missing parent, which would look like damage."""
        for layout in layouts:
            if layout.name not in self._series:
                raise MissingParent(layout.name)

    def _check(self, status: DecodeStatus) -> None:
        if status == DecodeStatus.OK:
            return
        unit = self._parsed.unit
        if status == DecodeStatus.TRUNCATED:
            end = unit.byte_offset + unit.size
            reason = f"tensor {self._record.names[0]!r}: the codeword goes on past the unit's end"
            raise TruncatedBitstream(unit.label, end, reason)
        raise self.invalid(_REASONS[status])

    def invalid(self, reason: str) -> InvalidBitstream:
        """Return the error of a data unit whose payload is damaged."""
        reason = f"tensor {self._record.names[0]!r}: {reason}"
        return InvalidBitstream(self._parsed.unit.label, self._parsed.payload_offset, reason)
