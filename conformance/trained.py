"""Plans whose cells train: rows that outlast a machine, and the tables made of them.

    python -m conformance.trained PLAN.toml -o RESULTS --data DIR [--only GLOB] [--minutes M]
    python -m conformance.trained PLAN.toml --table
    python -m conformance.trained PLAN.toml --plot FOLDER

Cells are measured as by `nnr-eval`, into the same folder of results. Each that is finished appends
a row to `conformance/rows/PLAN.jsonl`, by the name of the plan's file, wherever that is: figures,
and hashes of the stream and of the scripts that trained. Rows are for committing: what has one is
not trained again (remove it to do so; it is said if scripts have changed since), and the tables and
plots (bytes against operations, of what has lost a point at most) are made of rows alone. An
interrupted training goes on where it was, if its function keeps a state; `--minutes` interrupts.

The environment variable NNR_REFERENCES names the folder of networks that `conformance.references`
makes.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from conformance.studies.pareto import pareto_plot
from conformance.studies.trained_table import best_table, ratio_table, row_table
from nnr_codec.errors import NnrError
from nnr_codec.experiments.cells import Cell, Facts, Failure, Measured
from nnr_codec.experiments.methods.trained import TrainedCodec
from nnr_codec.experiments.plan import Plan, load_plan
from nnr_codec.experiments.runner import Run, cells_in, planned_cells, usable_folder

MOST_DROP = 1.0  # points, of what is plotted
ROWS = Path(__file__).parent / "rows"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="folder of results")
    parser.add_argument("--data", type=Path, help="folder of models and data")
    parser.add_argument(
        "--only", help="a glob: of the cells, SUBJECT/METHOD/POINT, those it matches"
    )
    parser.add_argument("--minutes", type=float, help="after which it stops, to be gone on with")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--plot", type=Path, help="write a plot of each network into this folder")
    given = parser.parse_args()
    try:
        plan = load_plan(given.plan)
        cells = planned_cells(plan, given.only)
        folder = given.output and cells_in(usable_folder(given.output))
    except (NnrError, OSError) as error:
        parser.error(str(error))
    path = ROWS / f"{plan.path.stem}.jsonl"
    if given.table:
        rows = read_rows(path)
        print(row_table(rows), ratio_table(rows), best_table(rows, plan.drops), sep="\n\n")
        if earlier := earlier_rows(plan, rows):
            print(f"\nBy earlier scripts or options: {len(earlier)} cells, from {earlier[0]!r} on")
        return 0
    if given.plot is not None:
        given.plot.mkdir(parents=True, exist_ok=True)
        rows = read_rows(path)
        for subject in dict.fromkeys(row["subject"] for row in rows):
            figure = pareto_plot(rows, subject, MOST_DROP)
            figure.savefig(given.plot / f"{path.stem}-{subject}.svg")
        return 0
    if folder is None:
        parser.error("-o is missing")
    torch.set_num_threads(given.threads)
    if given.minutes is not None:
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, 60 * given.minutes)
    try:
        return measure(plan, cells, Run(given.data, folder, None, None), path)
    except KeyboardInterrupt:
        print("not finished; the same command goes on", file=sys.stderr)
        return 1


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def measure(plan: Plan, cells: Sequence[Cell], run: Run, path: Path) -> int:
    """Measure the cells that have no row yet; return 1 if one failed."""
    failed = 0
    known = [row for row in read_rows(path) if row["cell"] in {cell.name for cell in cells}]
    if known:
        earlier = f"{len(earlier_rows(plan, known))} of them by other scripts or options"
        text = f"{len(known)} cells have rows in {path}, {earlier}: remove rows to train anew"
        print(text, file=sys.stderr)
    for cell in cells:
        if any(row["cell"] == cell.name for row in read_rows(path)):
            continue
        training = training_digest(cell)
        (outcome,) = run.outcomes([cell])
        facts, reference = run.facts[cell.subject.name], run.references[cell.subject.name]
        if isinstance(outcome, Failure):
            print(f"{cell.name}: {outcome.reason}", file=sys.stderr)
            failed = 1
        elif isinstance(facts, Facts) and isinstance(reference, Measured):
            stream = run.stream(cell)
            if stream is None or training_digest(cell) != training:
                print(f"{cell.name}: files changed meanwhile, so that it has no row")
                failed = 1
                continue
            row = row_of(cell, outcome, reference, facts) | {
                "stream": hashlib.sha256(stream).hexdigest(),
                "training": training,
            }
            append_row(path, row)
            print(json.dumps(row), flush=True)
    return failed


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row, unless another process has measured that cell meanwhile."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if all(row["cell"] != known["cell"] for known in read_rows(path)):
            file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a plan; a last one that was not written to its end is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def row_of(cell: Cell, outcome: Measured, reference: Measured, facts: Facts) -> dict[str, Any]:
    """Return the figures that are kept of a cell, JSON-ready."""
    record = outcome.record
    return {
        "cell": cell.name,
        "subject": cell.subject.name,
        "method": cell.method,
        "point": ", ".join(part for part in cell.label.split(", ") if part[:5] != "seed="),
        "score": record["scores"][facts.primary],
        "divergence": record["divergence"],
        "bytes": record["bytes"],
        "parameters": record.get("parameters", facts.parameters),
        "macs": record.get("macs", facts.macs),
        "of": {
            "score": reference.record["scores"][facts.primary],
            "bytes": reference.record["bytes"],
            "parameters": facts.parameters,
            "macs": facts.macs,
            "checkpoint": facts.checkpoint,
        },
        "torch": torch.__version__,
    }


def training_digest(cell: Cell) -> str:
    """Return the SHA-256 of the scripts and options that a cell is trained by; "" if by none."""
    if cell.point is None or not isinstance(cell.point.codec, TrainedCodec):
        return ""
    text = json.dumps(cell.point.codec.training_identity(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def earlier_rows(plan: Plan, rows: list[dict[str, Any]]) -> list[str]:
    """Return the names of cells whose rows were made by other scripts or options than today's."""
    today = {cell.name: training_digest(cell) for cell in planned_cells(plan)}
    return [row["cell"] for row in rows if today.get(row["cell"]) != row["training"]]


if __name__ == "__main__":
    sys.exit(main())
