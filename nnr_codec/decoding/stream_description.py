"""The description of a stream: a row for each coded tensor, made of the headers alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .._core import DecodeStatus, TensorSyntax, decode_codeword, peek_qp_delta
from ..bitstream import Context, DataUnit, ParsedUnit, PayloadType
from ..bitstream.lazy_bytes import loaded
from ..bitstream.qp import qp_delta_bits
from ..bitstream.unit_layout import TensorLayout, tensor_layouts
from ..factorization.extras import Extra
from ..factorization.factor_tracker import FactorTracker
from ..factorization.factorizations import Factorization, factors_of
from ..factorization.tensor_rules import TensorRule
from ..report import ExtraReport
from .stream_info import FactorizationInfo, StreamInfo, TensorInfo
from .stream_map import Selection, StreamMap
from .walk import Walk

_KINDS = {
    PayloadType.INT: "int",
    PayloadType.FLOAT: "float",
    PayloadType.RAW_FLOAT: "raw",
    PayloadType.BLOCK: "block",
}

_MOST_QP_BYTES = 64
"""Enough of a codeword for the quantization parameter before its integers."""


def describe_stream(units: Iterable[ParsedUnit]) -> StreamInfo:
    """Return what the headers of a whole stream say; of the units none is kept."""
    stream, totals = StreamMap(), _Totals()
    walk = Walk(stream, Selection("factorized"), _RowMaker())
    rows = walk.tensors(_rows(totals.counting(units), stream))
    tensors = [row.info for row in rows if row.info is not None]
    density, base_qp = totals.last.quantization or (None, None)
    return StreamInfo(
        profile=totals.last.profile,
        qp_density=density,
        base_qp=base_qp,
        units=totals.units,
        header_bytes=totals.header_bytes,
        tensors=tuple(tensors),
        factorizations=tuple(_factorizations(tensors, stream)),
        extras=tuple(_extras(tensors, stream)),
        metadata=stream.metadata,
        base=stream.model_map.base.stream if stream.model_map.base is not None else None,
    )


def describe_layers(streams: Iterable[Iterable[ParsedUnit]]) -> StreamInfo:
    """Return what the headers of quality layers say of the model that they make together."""
    infos = [describe_stream(units) for units in streams]
    first, *later = infos
    tensors = {tensor.name: tensor for tensor in first.tensors}
    for found in (tensor for info in later for tensor in info.tensors):
        known = tensors.get(found.name, replace(found, bytes=0))
        tensors[found.name] = replace(known, bytes=known.bytes + found.bytes, qp=found.qp)
    counted: set[str] = set()
    weights = []
    for weight in first.factorizations:
        new = [tensors[name] for name in weight.factors if name not in counted]
        counted.update(weight.factors)
        weights.append(replace(weight, bytes=sum(factor.bytes for factor in new)))
    return replace(
        first,
        units=sum(info.units for info in infos),
        header_bytes=sum(info.header_bytes for info in infos),
        tensors=tuple(tensors.values()),
        factorizations=tuple(weights),
        quality_layers=tuple(info.bytes for info in infos),
    )


class _Totals:
    """Counts units that go by.

    Attributes:
        units: how many there were.
        header_bytes: bytes of those that are no data units.
        last: what was in force before the last one.
    """

    def __init__(self) -> None:
        self.units = 0
        self.header_bytes = 0
        self.last = Context()

    def counting(self, units: Iterable[ParsedUnit]) -> Iterator[ParsedUnit]:
        """Yield the units, counted."""
        for parsed in units:
            self.units += 1
            self.header_bytes += 0 if isinstance(parsed.record, DataUnit) else parsed.unit.size
            self.last = parsed.context
            yield parsed


class _Row(NamedTuple):
    """A tensor on the walk; the info is None for products, ties and empty tensors."""

    name: str
    role: str
    info: TensorInfo | None = None


class _RowMaker:
    """Adds the bytes of parts to those of the tensors that they belong to."""

    def join(self, tensor: _Row, rule: TensorRule, part: _Row | None) -> _Row:
        if tensor.info is None or part is None or part.info is None:
            return tensor
        return tensor._replace(info=replace(tensor.info, bytes=tensor.info.bytes + part.info.bytes))

    def product(self, weight: str, entry: Factorization, factors: list[_Row]) -> _Row:
        return _Row(weight, "dense")

    def extra(self, extra: Extra, first: _Row | None) -> _Row:
        return _Row(extra.name, "empty" if first is None else "tied")


def _extras(tensors: Sequence[TensorInfo], stream: StreamMap) -> Iterator[ExtraReport]:
    """Describe the tensors that have no bytes of their own; a tie has the shape of its tensor."""
    shapes = {tensor.name: (tensor.shape, tensor.data_format) for tensor in tensors}
    for name, rule in stream.model_map.tensors.items():
        if rule.shape is not None and name in shapes:
            shapes[name] = (rule.shape, shapes[name][1])
    shapes |= {name: (entry.shape, entry.dtype) for name, entry in stream.factorizations.items()}
    for extra in stream.model_map.extras:
        known = (extra.shape, extra.dtype)
        shape, dtype = shapes.get(extra.tied_to, known) if extra.tied_to else known
        yield ExtraReport(extra.name, shape, dtype, extra.tied_to)


def _factorizations(
    tensors: Sequence[TensorInfo], stream: StreamMap
) -> Iterator[FactorizationInfo]:
    """Describe the weights that come as factors; a shared factor counts with the first of them."""
    tracker = FactorTracker[TensorInfo](factors_of(stream.factorizations))
    counted: set[str] = set()
    for tensor in tensors:
        for name in tracker.add(tensor.name, tensor):
            entry, factors = stream.factorizations[name], tracker.release(name)
            new = [factor for factor in factors if factor.name not in counted]
            counted.update(entry.factors)
            yield FactorizationInfo(
                name=name,
                form=entry.form,
                shape=entry.shape,
                ranks=entry.ranks([factor.shape for factor in factors]),
                factors=entry.factors,
                parameters=sum(factor.elements for factor in new),
                bytes=sum(factor.bytes for factor in new),
                data_format=entry.dtype,
            )


def _rows(units: Iterable[ParsedUnit], stream: StreamMap) -> Iterator[list[_Row]]:
    for parsed in units:
        stream.note(parsed)
        if isinstance(parsed.record, DataUnit):
            infos = _tensors(parsed, parsed.record, stream)
            yield [
                _Row(name, role, infos.get(name)) for name, role in parsed.record.decoded_roles()
            ]


def _tensors(parsed: ParsedUnit, record: DataUnit, stream: StreamMap) -> dict[str, TensorInfo]:
    """Describe the coded tensors of a data unit, by name; its bytes stand with the largest."""
    layouts = tensor_layouts(record, parsed.context)
    largest = max(layouts, key=lambda layout: math.prod(layout.shape)).name
    coded = record.payload_type != PayloadType.RAW_FLOAT
    infos = {}
    for layout, qp in zip(layouts, _qps(parsed, record, layouts), strict=True):
        rule = stream.model_map.tensors.get(layout.name, TensorRule())
        scan_order = record.scan_order if len(layout.shape) > 1 else 0  # vectors have none
        infos[layout.name] = TensorInfo(
            name=layout.name,
            shape=rule.shape if rule.shape and rule.integers_per_value > 1 else layout.shape,
            kind=rule.meaning.kind if rule.meaning else _KINDS[record.payload_type],
            role=layout.role,
            unit=parsed.unit.index,
            bytes=parsed.unit.size if layout.name == largest else 0,
            qp=qp,
            unary_length=record.unary_length if coded else None,
            scan_order=scan_order if coded else None,
            dq=bool(record.dq_flag) if coded else None,
            codebook_size=len(layout.codebook.values) if layout.codebook else None,
            data_format=rule.dtype or record.element_type,
        )
    return infos


def _qps(parsed: ParsedUnit, record: DataUnit, layouts: Sequence[TensorLayout]) -> list[int | None]:
    """Return the quantization parameters, as far as they can be had without decoding a matrix.

    Those of a block's tensors stand one before each, and its vectors come first.
    """
    if record.payload_type not in (PayloadType.FLOAT, PayloadType.BLOCK):
        return [None] * len(layouts)
    density, base_qp = parsed.context.quantization or (0, 0)
    bits = qp_delta_bits(density)
    if len(layouts) == 1 or record.parent is not None:
        begin = np.frombuffer(parsed.payload[:_MOST_QP_BYTES], dtype=np.uint8)
        first = [base_qp + peek_qp_delta(begin, bits)]
        return [*first, *[None] * (len(layouts) - 1)]
    before = [layout.syntax for layout in layouts if len(layout.shape) == 1][: len(layouts) - 1]
    # Of the tensor behind the vectors as little is decoded as there can be.
    syntaxes = [*before, TensorSyntax(1, 1)]
    elements = sum(math.prod(layout.shape) for layout in layouts[: len(before)])
    begin = np.frombuffer(parsed.payload[: _MOST_QP_BYTES + 4 * elements], dtype=np.uint8)
    status, vectors = decode_codeword(begin, syntaxes, bits, [])
    if status == DecodeStatus.TRUNCATED:  # the vectors take more than they usually do
        payload = np.frombuffer(loaded(parsed.payload), dtype=np.uint8)
        _, vectors = decode_codeword(payload, syntaxes, bits, [])
    qps: list[int | None] = [base_qp + qp_delta for qp_delta, _, _ in vectors]
    return qps + [None] * (len(layouts) - len(qps))
