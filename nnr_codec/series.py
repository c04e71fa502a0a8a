"""What a series of streams (a model and its updates) hands on from one to the next."""

from __future__ import annotations

import numpy as np

from .errors import InvalidBitstream, MissingParent
from .unit_layout import Integers, ParentData


class Series:
    """Each tensor's integers in the last stream that held it, and where any were ever non-zero.

    See spec/bitstream.md, "Updates".
    """

    def __init__(self) -> None:
        self.depth = 0
        self._parameter_ids: dict[str, int] = {}
        self._last: dict[str, Integers] = {}
        self._history: dict[str, np.ndarray] = {}

    def add(self, integers: dict[str, Integers]) -> None:
        """Append a stream, given the integers (flat int32) of its tensors.

        To be called only when the whole stream was decoded without error.
        """
        for name, values in integers.items():
            self.parameter_id(name)
            history = self._history.get(name)
            nonzero = values != 0
            if history is not None and history.size == nonzero.size:
                nonzero = np.logical_or(nonzero, history)
            self._history[name] = nonzero.astype(np.uint8)
        self._last.update(integers)
        self.depth += 1

    def parameter_id(self, name: str) -> int:
        """Return the number of tensor `name` in the series: in order of first appearance."""
        return self._parameter_ids.setdefault(name, len(self._parameter_ids))

    def elements(self, name: str) -> int:
        """Return the number of elements of tensor `name`, which the series holds."""
        return self._history[name].size

    def __contains__(self, name: str) -> bool:
        """Whether some stream of the series holds tensor `name`."""
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

    def require(self, name: str) -> None:
        """Check that some stream of the series holds tensor `name`.

        Raises:
            MissingParent: none does.
        """
        if name not in self:
            raise MissingParent(name)
