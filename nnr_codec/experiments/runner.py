"""Core experiments: a plan's cells are measured, kept, and made into tables, plots and a page."""

from __future__ import annotations

import datetime
import fnmatch
import importlib.util
import os
import platform
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InvalidOptions
from .cache import CellCache, cell_key
from .cells import Cell, Facts, Failure, Measured, attempt, examine, measure
from .fingerprints import codec_fingerprint
from .methods.external import ExternalCodec
from .methods.trained import TrainedCodec
from .plan import Plan, load_plan
from .report.results import Results

_PACKAGES = ("torch", "matplotlib", "zstandard", "constriction")
_NAMED_PACKAGES = ("nnr-codec", "numpy", "torch", "scipy", "zstandard", "constriction")
_CELLS = "cells"
_RESULT_FILES = {_CELLS, "plots", "results.csv", "results.json", "report.html"}
Progress = Callable[[str, bool], object]
K = TypeVar("K")


def run_plan(
    plan: Plan | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    only: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Measure the cells of a plan; those that `out` holds already are taken from there.

    The results do not depend on the executor, but for times: cells that run side by side slow each
    other down.

    Args:
        plan: a plan, or its file.
        out: folder of results, which is made; None: nothing is kept or written.
        data: folder of models and data, for the subjects that need one.
        executor: measures cells side by side; workers may be threads, processes or machines that
            see the files of models and data.
        only: a glob; of the cells, ``SUBJECT/METHOD/POINT``, those whose names match are measured.
        overwrite: write into a folder that holds other files as well.
        progress: called with the name of each cell when it is done, and whether it was measured.

    Raises:
        InvalidOptions: the plan is wrong, `only` matches nothing, `out` cannot be used, or a
            package of the extra `eval` is missing.
        OSError: a file cannot be read or written.
    """
    from .report.files import write_report

    check_packages()
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    folder = None if out is None else usable_folder(out, overwrite)
    data_folder = None if data is None else Path(data).resolve()
    run = Run(data_folder, cells_in(folder) if folder else None, executor, progress)
    results = run.results(plan, only, _command(plan, folder, data_folder, only))
    if folder is not None:
        write_report(results, folder)
    return results


def check_packages() -> None:
    """Raise InvalidOptions if a package of the extra `eval` is missing."""
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise InvalidOptions("extra eval", f"{name} is missing: pip install 'nnr-codec[eval]'")


def usable_folder(out: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Return a folder of results, made if needed; InvalidOptions if it holds other files or is
    none."""
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in out.iterdir()}
    except OSError as error:
        raise InvalidOptions("output", f"{os.fspath(out)!r}: {error.strerror}") from error
    if names and not names & _RESULT_FILES and not overwrite:
        reason = f"{os.fspath(out)!r} holds other files than results; -f writes there too"
        raise InvalidOptions("output", reason)
    return out


def cells_in(folder: Path) -> CellCache:
    """Return the measured cells of a folder of results."""
    return CellCache(folder / _CELLS)


def planned_cells(plan: Plan, only: str | None = None) -> list[Cell]:
    """Return the cells of a plan in its order: subjects, then methods, then points.

    Raises InvalidOptions if `only` matches none.
    """
    cells = [
        Cell(subject, method.name, point)
        for subject in plan.subjects
        for method in plan.methods
        for point in method.points
    ]
    chosen = [cell for cell in cells if only is None or fnmatch.fnmatchcase(cell.name, only)]
    if not chosen:
        raise InvalidOptions("only", f"{only!r} matches no cell; the first is {cells[0].name!r}")
    return chosen


def _command(plan: Plan, out: Path | None, data: Path | None, only: str | None) -> str:
    """Return the command line that makes these results; of paths the last part, as results are for
    sharing."""
    words = ["nnr-eval", plan.path.name, "-o", out.name if out else "RESULTS"]
    words += ["--data", data.name] if data else []
    return shlex.join(words + (["--only", only] if only else []))


@dataclass
class Run:
    """One pass over a plan; the arguments are those of `run_plan`.

    Attributes:
        needs_streams: whether cells whose streams the cache lacks are measured anew.
    """

    data: Path | None
    cache: CellCache | None
    executor: Executor | None
    progress: Progress | None
    needs_streams: bool = False
    facts: dict[str, Facts | Failure] = field(default_factory=dict)  # of the subjects, by name
    references: dict[str, Measured | Failure] = field(default_factory=dict)  # likewise

    def results(self, plan: Plan, only: str | None, command: str) -> Results:
        """Measure; the uncompressed networks first, which the other cells are compared with."""
        cells = planned_cells(plan, only)
        pairs = list(zip(cells, self.outcomes(cells), strict=True))
        return Results(plan, pairs, self.references, self.facts, run_facts(cells, command))

    def outcomes(self, cells: Sequence[Cell]) -> list[Measured | Failure]:
        """Measure the cells, and before them their subjects' uncompressed networks."""
        subjects = {cell.subject.name: cell.subject for cell in cells}
        examined = {name: (examine, subject, self.data) for name, subject in subjects.items()}
        self.facts = dict(self._called(examined))
        measured = self._measured([Cell(subject) for subject in subjects.values()])
        self.references = dict(zip(subjects, measured, strict=True))
        return self._measured(cells)

    def stream(self, cell: Cell) -> bytes | None:
        """Return what the method wrote for a cell that was measured, if the cache has it."""
        facts = self.facts[cell.subject.name]
        if self.cache is None or isinstance(facts, Failure):
            return None
        return self.cache.stream(cell, cell_key(cell, facts))

    def _measured(self, cells: Sequence[Cell]) -> list[Measured | Failure]:
        """Measure what the cache does not hold; keep each cell as soon as it is there."""
        outcomes: list[Any] = [self._known(cell) for cell in cells]
        keys = {index: key for index, key in enumerate(outcomes) if isinstance(key, str)}
        for index, cell in enumerate(cells):
            if index not in keys:
                self._tell(cell, outcomes[index])
        calls = {i: self._call(cells[i]) for i in keys}
        for index, outcome in self._called(calls):
            if isinstance(outcome, Measured):
                if self.cache is not None:
                    self.cache.put(cells[index], keys[index], outcome)
                outcome = replace(outcome, stream=None)  # those of all cells may be too many
            outcomes[index] = outcome
            self._tell(cells[index], outcome)
        return outcomes

    def _call(self, cell: Cell) -> tuple[Any, ...]:
        """Return what measures a cell."""
        facts, state = self.facts[cell.subject.name], None
        trains = cell.point is not None and isinstance(cell.point.codec, TrainedCodec)
        if trains and self.cache is not None and isinstance(facts, Facts):
            state = self.cache.state(cell, facts)
        return measure, cell, self.data, self._outputs(cell), state

    def _known(self, cell: Cell) -> Measured | Failure | str:
        """Return the cell from the cache, or why it cannot be measured, or its key."""
        facts = self.facts[cell.subject.name]
        for needed in (facts, self.references.get(cell.subject.name)):
            if isinstance(needed, Failure):
                return needed
        key: str | Failure = attempt(cell_key, cell, facts)
        if self.cache is None or not isinstance(key, str):
            return key
        if self.needs_streams and cell.point and self.cache.stream(cell, key) is None:
            return key
        measured = self.cache.get(cell, key)
        return key if measured is None else measured

    def _outputs(self, cell: Cell) -> Any:
        reference = self.references.get(cell.subject.name)
        return reference.samples["outputs"] if isinstance(reference, Measured) else None

    def _called(self, calls: Mapping[K, tuple[Any, ...]]) -> Iterator[tuple[K, Any]]:
        """Make calls side by side; yield their keys and outcomes as they come."""
        if self.executor is None:
            yield from ((key, attempt(*call)) for key, call in calls.items())
            return
        futures: dict[Future[Any], K] = {
            self.executor.submit(attempt, *call): key for key, call in calls.items()
        }
        try:
            for future in as_completed(futures):
                yield futures[future], attempt(future.result)  # workers may be lost
        finally:
            for future in futures:
                future.cancel()

    def _tell(self, cell: Cell, outcome: Measured | Failure) -> None:
        if self.progress is not None:
            self.progress(cell.name, isinstance(outcome, Measured))


def run_facts(cells: Sequence[Cell], command: str) -> dict[str, Any]:
    """Return what a page of results says of its making, JSON-ready."""
    versions = {name: _version(name) for name in _NAMED_PACKAGES}
    versions |= {"python": platform.python_version(), "codec files": codec_fingerprint()}
    for cell in cells:
        codec = cell.point.codec if cell.point else None
        if isinstance(codec, ExternalCodec) and cell.method not in versions:
            identity = attempt(codec.identity)
            versions[cell.method] = "" if isinstance(identity, Failure) else identity["version"]
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} x {_processor()}",
        "versions": versions,
    }


def _processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "processor")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
