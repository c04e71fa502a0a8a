"""Moments of gradients in a temporary file: of one weight at a time they are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..model import Float64
from ..support.spilled import SpilledArray, SpillFile
from .moments import Calibration, ResultMoments


@dataclass(frozen=True, slots=True)
class _Entry:
    """The moments of a weight without their matrices, and these in the file."""

    numbers: ResultMoments
    columns: SpilledArray | None
    rows: SpilledArray | None


class SpilledMoments(Mapping[str, ResultMoments]):
    """`ResultMoments` by the weights' names, each read when it is asked for."""

    def __init__(self, moments: Iterable[tuple[str, ResultMoments]]) -> None:
        """Write moments, one after the other; OSError if they cannot be written."""
        self._file = SpillFile()
        self._entries = {name: self._spilled(each) for name, each in moments}

    def __getitem__(self, name: str) -> ResultMoments:
        entry = self._entries[name]
        return replace(entry.numbers, columns=_read(entry.columns), rows=_read(entry.rows))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in another process perhaps, has them in memory: the file goes with this one."""
        return dict, (dict(self),)

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # without reading

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _spilled(self, moments: ResultMoments) -> _Entry:
        columns, rows = (
            None if matrix is None else self._file.put(matrix)
            for matrix in (moments.columns, moments.rows)
        )
        return _Entry(replace(moments, columns=None, rows=None), columns, rows)


def spill_file_for(calibration: Calibration | None, *, low_memory: bool) -> SpillFile | None:
    """Return a file for what is made of moments, if these are in one, or memory is low; None: it
    stays in memory, or nothing is known."""
    if calibration is None:
        return None
    is_spilled = low_memory or isinstance(calibration.result, SpilledMoments)
    return SpillFile() if is_spilled else None


def _read(matrix: SpilledArray | None) -> Float64 | None:
    return None if matrix is None else matrix.read()
