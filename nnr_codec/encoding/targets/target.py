"""What a target has to say to the search that all targets share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from ...errors import TargetNotReached
from ...report import Evaluation
from ..stream_encoder import Draft

Seen = Mapping[int, Evaluation]
"""The streams that were made, by their offset."""


class Target(Protocol):
    """A target of a whole stream.

    Attributes:
        option: its name.
        bound: the most that what it is of may be.
        compares_kept: whether the stream that is kept may be replaced by one of the other profile.
    """

    @property
    def option(self) -> str: ...
    @property
    def bound(self) -> float: ...
    @property
    def compares_kept(self) -> bool: ...

    def offsets(self, seen: Seen) -> Iterator[int]:
        """Yield where to encode next; the stream has to be in `seen` when the next one is wanted,
        and `seen` has to be empty in the beginning."""

    def loss(self, draft: Draft) -> float | None:
        """Return what is measured of a stream; None: nothing but its bytes."""

    def best(self, seen: Seen) -> Evaluation | None:
        """Return the best of the streams that meet the target; None: none does."""

    def notes(self, seen: Seen) -> list[str]:
        """Return sentences for the report."""

    def not_reached(self, seen: Seen) -> TargetNotReached:
        """Return the error that names the stream which comes closest, if none meets the target."""
