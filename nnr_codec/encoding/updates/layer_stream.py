"""One quality layer as a bitstream, whose model map is known last."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from ...bitstream import Context, StartUnit, Topology, write_record
from ...bitstream.indexing import write_indexed
from ...factorization.model_map import ModelMap


class LayerUnit(NamedTuple):
    """A data unit of a layer: the name of its first tensor, and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class LayerStream:
    """A layer.

    Attributes:
        context: its profile and parameter set.
        model_map: its map, but for the table of contents.
        units: its data units.
        is_indexed: whether there is a table of contents.
    """

    context: Context
    model_map: ModelMap
    units: Sequence[LayerUnit]
    is_indexed: bool = False

    def with_map(self, **changes: Any) -> LayerStream:
        """Return the layer with another map."""
        return replace(self, model_map=replace(self.model_map, **changes))

    @cached_property
    def data(self) -> bytes:
        """The bitstream."""
        profile, text = self.context.profile, ""
        if self.model_map:
            text = self.model_map.to_text()
        records = StartUnit(profile), self.context.mps, Topology(topology_data=text)
        head = b"".join(write_record(record, profile) for record in records if record is not None)
        data = head + b"".join(unit.data for unit in self.units)
        if not self.is_indexed:
            return data
        output = io.BytesIO()
        write_indexed(io.BytesIO(data), output)
        return output.getvalue()

    @property
    def head_bytes(self) -> int:
        """Bytes of the units that hold no tensor."""
        return len(self.data) - sum(len(unit.data) for unit in self.units)
