"""Handing over the stream of a cell: what a plan found good enough is what people ship."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..checkpoints.atomic import atomic_output, makes_new_file
from ..errors import InvalidOptions, NnrError
from .cells import Cell, Failure, Measured
from .plan import Plan, load_plan
from .runner import Progress, Run, cells_in, check_packages, planned_cells, usable_folder

_MOST_NAMED = 5


@dataclass(frozen=True)
class HandedOver:
    """A stream that was handed over: its cell, and the figures of that."""

    cell: Cell
    measured: Measured


def hand_over(
    plan: Plan | str | os.PathLike[str],
    out: str | os.PathLike[str],
    name: str,
    target: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> HandedOver:
    """Write the stream of one cell to a file: the very bytes that were decoded and measured.

    A cell that `out` does not hold yet, or without its stream, is measured first. The report there
    stays as it is.

    Args:
        plan, data, executor, progress: as of :func:`~.runner.run_plan`.
        out: folder of results.
        name: of the cell, ``SUBJECT/METHOD/POINT``, or a glob that matches one alone.
        target: the file, which appears complete or not at all.
        overwrite: replace an existing file.

    Raises:
        InvalidOptions: the plan is wrong, has no such cell or several of them, or a file cannot be
            written.
        NnrError: the cell failed.
        OSError: a file cannot be read or written.
    """
    check_packages()
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    cell = named_cell(planned_cells(plan), name)
    if os.path.lexists(target) and makes_new_file(target) and not overwrite:
        raise InvalidOptions("stream", f"{os.fspath(target)!r} exists already; -f overwrites it")
    cache = cells_in(usable_folder(out, overwrite))
    data_folder = None if data is None else Path(data).resolve()
    run = Run(data_folder, cache, executor, progress, needs_streams=True)
    with atomic_output(target, overwrite=overwrite) as file:  # which fails before all the work
        (outcome,) = run.outcomes([cell])
        if isinstance(outcome, Failure):
            raise NnrError(f"{cell.name}: {outcome.reason}")
        stream = run.stream(cell)
        if stream is None:
            raise NnrError(f"{cell.name}: its stream has gone from {os.fspath(out)!r} meanwhile")
        file.write(stream)
    return HandedOver(cell, outcome)


def named_cell(cells: Sequence[Cell], name: str) -> Cell:
    """Return the cell of a name, or the only one that a glob matches.

    Raises:
        InvalidOptions: there is none, or there are several; the message names near ones.
    """
    by_name = {cell.name: cell for cell in cells}
    if name in by_name:
        return by_name[name]
    matching = [each for each in by_name if fnmatch.fnmatchcase(each, name)]
    if len(matching) == 1:
        return by_name[matching[0]]
    if matching:
        more = ", …" if len(matching) > _MOST_NAMED else ""
        names = ", ".join(map(repr, matching[:_MOST_NAMED]))
        raise InvalidOptions("stream", f"{name!r} matches {len(matching)} cells: {names}{more}")
    near = get_close_matches(name, by_name, _MOST_NAMED, 0.0)
    names = ", ".join(map(repr, near))
    raise InvalidOptions("stream", f"the plan has no cell {name!r}; the nearest are {names}")
