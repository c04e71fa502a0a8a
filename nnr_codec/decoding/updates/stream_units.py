"""The data units of one stream of a base, and what their headers tell of the series."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from ..._core import peek_qp_delta
from ...bitstream import DataUnit, NodeId, ParsedUnit, PayloadType
from ...bitstream.lazy_bytes import loaded
from ...bitstream.qp import qp_delta_bits
from ...bitstream.unit_layout import tensor_layouts
from ...errors import BitstreamError, naming
from ..series import Series
from ..unit_decoder import DecodedTensor, decode_data_unit


class StreamUnits:
    """The data units of a stream.

    Attributes:
        name: what errors call the stream.
        earlier: those of the streams before it, oldest first.
        by_name: by the name of each coded tensor the unit that has it.
    """

    def __init__(
        self, name: str | None, units: Iterable[ParsedUnit], earlier: Iterable[StreamUnits] = ()
    ) -> None:
        self.name = name
        self.earlier = tuple(earlier)
        self.by_name = {name: unit for unit in units for name in header(unit).names}
        self._qps: dict[str, int | None] = {}  # of tensors that were decoded

    def decoded(self, unit: ParsedUnit, series: Series, keep_integers: bool) -> list[DecodedTensor]:
        """Decode a unit; `series`: what it needs of the earlier streams.

        Raises:
            BitstreamError: it is damaged, or contradicts the series.
        """
        with naming(self.name, BitstreamError):
            tensors = decode_data_unit(unit, series, keep_integers=keep_integers)
        self._qps.update((tensor.name, tensor.qp) for tensor in tensors)
        return tensors

    def known_qp(self, name: str) -> int | None:
        """Return the quantization parameter of coded tensor `name`, if it has one.

        Raises:
            KeyError: the unit has to be decoded first, as it holds several tensors.
        """
        unit = self.by_name[name]
        if header(unit).payload_type != PayloadType.FLOAT:
            return self._qps[name]
        density, base_qp = unit.context.quantization or (0, 0)
        payload = np.frombuffer(loaded(unit.payload), np.uint8)
        return base_qp + peek_qp_delta(payload, qp_delta_bits(density))

    @cached_property
    def identities(self) -> Mapping[str, tuple[NodeId | None, int | None]]:
        """The identity of each coded tensor's unit, and how many integers it has; None: none, but
        raw floats."""
        found: dict[str, tuple[NodeId | None, int | None]] = {}
        for unit in {id(unit): unit for unit in self.by_name.values()}.values():
            record = header(unit)
            is_raw = record.payload_type == PayloadType.RAW_FLOAT
            for layout in tensor_layouts(record, unit.context):
                count = None if is_raw else math.prod(layout.shape)
                found[layout.name] = record.node_id, count
        return found


def header(unit: ParsedUnit) -> DataUnit:
    """Return the header of a data unit."""
    if not isinstance(unit.record, DataUnit):
        raise TypeError(f"{unit.unit.label} is no data unit")
    return unit.record
