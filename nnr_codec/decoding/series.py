"""What a series of streams (a model and its updates) hands on from one to the next."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..bitstream import NodeId
from ..bitstream.unit_layout import Integers, ParentData
from ..errors import InvalidBitstream


class Series:
    """Each tensor's integers in the last stream that held it, and where any were ever non-zero.

    See spec/bitstream.md, "Updates".

    Attributes:
        depth: streams so far.
    """

    def __init__(self) -> None:
        self.depth = 0
        self._node_ids: dict[str, NodeId] = {}
        self._last: dict[str, Integers] = {}
        self._history: dict[str, npt.NDArray[np.uint8]] = {}

    def add(self, tensors: Mapping[str, tuple[Integers | None, NodeId | None]]) -> None:
        """Append a stream, to be called only when the whole of it was decoded without error.

        Args:
            tensors: by name its integers, flat int32, or None for raw floats; and the identity of
                its unit, or None.
        """
        expected = self.node_ids(tensors)
        for name, (integers, node_id) in tensors.items():
            known = node_id or expected[name]
            if integers is None:  # such a stream does not count: the next one has the same depth
                known = replace(known, put_node_depth=known.put_node_depth - 1)
            else:
                self._add_integers(name, integers)
            self._node_ids[name] = known
        self.depth += 1

    def _add_integers(self, name: str, integers: Integers) -> None:
        nonzero = integers != 0
        history = self._history.get(name)
        if history is not None and history.size == nonzero.size:
            nonzero = np.logical_or(nonzero, history)
        self._history[name] = nonzero.astype(np.uint8)
        self._last[name] = integers

    def part(self, names: Iterable[str]) -> Series:
        """Return the integers of the tensors `names` alone: what coding these needs elsewhere."""
        part, names = Series(), list(names)
        part._last = {name: self._last[name] for name in names if name in self._last}
        part._history = {name: self._history[name] for name in names if name in self._history}
        return part

    def loaded(self, names: Iterable[str]) -> Series:
        """Return the series of the tensors `names` alone, with their integers in memory, so that
        other processes can have it."""
        return self.part(names)

    def in_one_pass(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Get ready for values and integers of tensors that are decoded while the block runs; here
        all are in memory."""
        return nullcontext()

    def node_ids(self, names: Iterable[str]) -> dict[str, NodeId]:
        """Return the identities of the next stream's tensors.

        As with the reference, parameters are numbered in order of first appearance, and
        put_node_depth counts the streams that held the tensor's integers before.
        """
        node_ids: dict[str, NodeId] = {}
        next_number = max((n.parameter_id for n in self._node_ids.values()), default=-1) + 1
        for name in names:
            last = self._node_ids.get(name)
            if last is None:
                node_ids[name] = NodeId(0, next_number, 0)
                next_number += 1
            else:
                node_ids[name] = NodeId(last.device_id, last.parameter_id, last.put_node_depth + 1)
        return node_ids

    def elements(self, name: str) -> int:
        """Return the number of elements of tensor `name`, which the series holds."""
        return self._history[name].size

    def __contains__(self, name: str) -> bool:
        """Whether some stream of the series holds integers of tensor `name`."""
        return name in self._history

    def parent_data(self, name: str, elements: int, *, label: str, offset: int) -> ParentData:
        """Return what the contexts of tensor `name` see; zeros for a tensor not in the series.

        Raises:
            InvalidBitstream: the tensor had another number of elements before.
        """
        history = self._history.get(name)
        if history is None:
            return ParentData()
        if history.size != elements:
            reason = f"{name!r} has {elements} elements, {history.size} in an earlier stream"
            raise InvalidBitstream(label, offset, reason)
        return ParentData(self._last.get(name), history)
