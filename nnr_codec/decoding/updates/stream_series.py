"""What open streams hand on to the next one: integers that are decoded when they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...bitstream.unit_layout import ParentData
from ..series import Series
from .series_pass import SeriesPass
from .stream_units import StreamUnits


class StreamSeries(Series):
    """A series of open streams, of which no integers are kept.

    Attributes:
        streams: their data units, oldest first.
    """

    def __init__(self, streams: Sequence[StreamUnits] = ()) -> None:
        """`streams`: oldest first."""
        super().__init__()
        self.streams = tuple(streams)
        self._sizes: dict[str, int] = {}
        for stream in self.streams:
            nothing = np.zeros(0, np.int32)
            self.add(
                {
                    name: (None if size is None else nothing, node_id)
                    for name, (node_id, size) in stream.identities.items()
                }
            )
            sizes = {name: size for name, (_, size) in stream.identities.items()}
            self._sizes |= {name: size for name, size in sizes.items() if size is not None}

    def loaded(self, names: Iterable[str]) -> Series:
        """Return the series of the tensors `names` alone, with their integers in memory.

        Raises:
            BitstreamError: a stream is damaged.
        """
        return SeriesPass(self.streams, names=names).series()

    def part(self, names: Iterable[str]) -> Series:
        """Return the series: it holds no integers."""
        return self

    def elements(self, name: str) -> int:
        """Return the number of elements of tensor `name`, which the series holds."""
        return self._sizes[name]

    def parent_data(self, name: str, elements: int, *, label: str, offset: int) -> ParentData:
        """Return what the contexts of a tensor see; raises what ``Series.parent_data`` raises, and
        a BitstreamError of damaged streams."""
        part = self.loaded([name])
        return part.parent_data(name, elements, label=label, offset=offset)
