"""Time of trained networks beside the dense ones, by the streams that `conformance.trained` left.

    python -m conformance.studies.trained_latency PLAN.toml -o RESULTS [--data DIR] [--only GLOB]

Each row of the plan whose stream is still in RESULTS is loaded, its layers on factors where its
weights are, and runs in turns with the dense network on the same samples: one thread, processor
time. `time ÷` is the median of the rounds' quotients, dense over trained, and their quartiles.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from conformance.latency import Rounds, quotients, samples
from conformance.trained import ROWS, read_rows
from nnr_codec.errors import NnrError
from nnr_codec.experiments.cells import Cell
from nnr_codec.experiments.evaluation import trained_module
from nnr_codec.experiments.plan import load_plan
from nnr_codec.experiments.runner import planned_cells
from nnr_codec.experiments.subject_source import find_subject
from nnr_codec.layers import load_into
from nnr_codec.user.module import apply


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of results")
    parser.add_argument("--data", type=Path, help="folder of models and data")
    parser.add_argument("--only", help="a glob of cells, as of `conformance.trained`")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 32], help="at a time")
    parser.add_argument("--rounds", type=int, default=21, help="of both networks, at least")
    parser.add_argument("--seconds", type=float, default=2.0, help="of rounds, if they are short")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = {row["cell"]: row for row in read_rows(ROWS / f"{given.plan.stem}.jsonl")}
    try:
        cells = [c for c in planned_cells(load_plan(given.plan), given.only) if c.name in rows]
    except (NnrError, OSError) as error:
        parser.error(str(error))
    rounds = Rounds(given.rounds, given.seconds)
    if not cells:
        parser.error("no row of the plan is of such a cell")
    print("| network | method | point | MACs ÷ | samples | time ÷ | quartiles |")
    print("| --- | --- | --- | ---: | ---: | ---: | --- |")
    for cell, stream in streams(cells, rows, given.output):
        row = rows[cell.name]
        subject = find_subject(cell.subject.source, given.data)
        loaded = load_into(trained_module(subject), stream).eval()
        modules = trained_module(subject).eval(), loaded
        fewer = f"{row['of']['macs'] / row['macs']:.2f}" if row["macs"] else ""
        for count in given.samples:
            low, median, high = times(modules, samples(subject, count), rounds)
            print(
                f"| {row['subject']} | {row['method']} | {cell.label} "
                f"| {fewer} | {count} "
                f"| {median:.2f} | {low:.2f} … {high:.2f} |",
                flush=True,
            )


def streams(
    cells: Sequence[Cell], rows: Mapping[str, Any], folder: Path
) -> Iterator[tuple[Cell, bytes]]:
    """Yield the cells whose streams are in a folder of results, with these."""
    paths = folder.rglob("*.stream")
    found = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in paths}
    for cell in cells:
        path = found.get(rows[cell.name]["stream"])
        if path is None:
            print(f"{cell.name}: its stream is not there", file=sys.stderr)
        else:
            yield cell, path.read_bytes()


@torch.inference_mode()
def times(modules: Sequence[torch.nn.Module], inputs: Any, rounds: Rounds) -> list[float]:
    """Return quartiles of the first one's time over that of the second."""
    return quotients(rounds.times([partial(apply, module, inputs) for module in modules]))


if __name__ == "__main__":
    main()
