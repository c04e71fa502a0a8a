"""nnr-eval: core experiments, rate against accuracy."""

from __future__ import annotations

import argparse
import os
import sys

from ..errors import InvalidOptions
from ..experiments.plan import Plan, load_plan
from ..experiments.report.bd_rate import BdRate
from ..experiments.report.files import PAGE
from ..experiments.report.results import Results
from ..experiments.report.tables import document
from ..experiments.runner import planned_cells, run_plan, usable_folder
from ..experiments.streams import HandedOver, hand_over
from ..report import size_text
from . import _common as common
from ._running import run
from .text import printable, table

PROGRAM = "nnr-eval"
DATA_VARIABLE = "NNR_DATA"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run(_parser(), _evaluate, arguments)


def _parser() -> common.Parser:
    parser = common.Parser(
        PROGRAM, "Run a core experiment: networks, coded in several ways, and what they still do."
    )
    parser.add_argument("plan", metavar="PLAN.toml", help="the experiment")
    output = f"folder of results, {PAGE} among them; a run that was interrupted goes on there"
    parser.add_argument("-o", "--output", metavar="RESULTS", required=True, help=output)
    parser.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="write into a folder that holds other files, and over the file of --stream",
    )
    default = os.environ.get(DATA_VARIABLE)
    about = f"folder of models and data (default: the environment's {DATA_VARIABLE})"
    parser.add_argument("--data", metavar="DIR", default=default, help=about)
    parser.add_argument("--only", metavar="GLOB", help="cells to measure: SUBJECT/METHOD/POINT")
    parser.add_argument(
        "--stream",
        nargs=2,
        metavar=("CELL", "FILE"),
        help="write the stream of this cell, SUBJECT/METHOD/POINT or a glob that matches it alone, "
        "instead of a report, - to standard output; it is measured first, if need be",
    )
    common.add_amount(parser, "cell")
    common.add_threads(parser)
    return parser


def _evaluate(given: argparse.Namespace) -> int:
    plan = load_plan(given.plan)
    if given.data is not None and not os.path.isdir(given.data):
        raise InvalidOptions("--data", f"there is no folder {given.data!r}")
    if given.stream is not None:
        return _hand_over(given, plan)
    cells = planned_cells(plan, given.only)
    usable_folder(given.output, given.force)
    total = len(cells) + len({cell.subject.name for cell in cells})
    with (
        common.executor(given.threads) as executor,
        common.progress_bar(given.quiet, total, "cell") as advance,
        common.users_prints_aside(),
    ):
        results = run_plan(
            plan,
            given.output,
            data=given.data,
            executor=executor,
            only=given.only,
            overwrite=given.force,
            progress=lambda name, measured: advance(1),
        )
    for reason, names in results.failed_names.items():
        for name in names:
            print(f"{PROGRAM}: {printable(f'{name}: {reason}')}", file=sys.stderr)
    if not given.quiet:
        for name, glob in results.unmatched_globs:
            common.warn(PROGRAM, f"{name}: {glob!r} matches no tensor")
    if given.json:
        common.print_json(document(results))
    elif not given.quiet:
        _show(given, results)
    return common.FAILURE if results.failures else common.DONE


def _hand_over(given: argparse.Namespace, plan: Plan) -> int:
    """Write the stream of the cell that --stream names."""
    if given.only is not None:
        raise InvalidOptions("only", "has no effect with --stream, which names its cell itself")
    name, target = given.stream
    target = common.STDOUT if target == "-" else target
    with (
        common.executor(given.threads) as executor,
        common.progress_bar(given.quiet, 2, "cell") as advance,
        common.users_prints_aside(target) as inside,
    ):
        made = hand_over(
            plan,
            given.output,
            name,
            inside or target,
            data=given.data,
            executor=executor,
            overwrite=given.force,
            progress=lambda name, measured: advance(1),
        )
    with common.results_beside(target):
        _show_handed_over(given, made, target)
    return common.DONE


def _show_handed_over(given: argparse.Namespace, made: HandedOver, target: str) -> None:
    figures = made.measured.record
    if given.json:
        common.print_json({"cell": made.cell.name, "stream": target, **figures})
    elif not given.quiet:
        scores = [f"{name} {_or_dash(value, '.4g')}" for name, value in figures["scores"].items()]
        quality = ", ".join([*scores, f"divergence {_or_dash(figures['divergence'], '.3g')}"])
        size = f"{size_text(figures['bytes'])}, {figures['bits_per_weight']:.3f} bit/weight"
        print(f"{printable(made.cell.name)} -> {printable(target)}: {size}, {quality}")


def _show(given: argparse.Namespace, results: Results) -> None:
    if given.verbose:
        print(_cells(results), end="\n\n")
    header = ["network", "method", "BD-rate", *(f"drop {drop:g}" for drop in results.plan.drops)]
    rows = []
    for subject in results.subjects:
        for method, losses in subject.losses.items():
            rate = subject.bd_rates.get(method, BdRate(None))
            change = "-" if rate.change is None else f"{100 * rate.change:+.1f} %"
            sizes = ["-" if one.bytes is None else size_text(one.bytes) for one in losses]
            rows.append([printable(subject.name), printable(method), change, *sizes])
    if rows:
        print(table(header, rows))
    failed = f", {len(results.failures)} failed" if results.failures else ""
    page = os.path.join(given.output, PAGE)
    print(f"{common.counted(len(results.cells), 'cell')}{failed}: {printable(page)}")


def _cells(results: Results) -> str:
    rows = [
        (
            printable(cell.name),
            str(measured.record["bytes"]),
            f"{measured.record['bits_per_weight']:.3f}",
            _or_dash(subject.accuracy(measured), ".2f"),
            _or_dash(measured.record["divergence"], ".3g"),
        )
        for subject in results.subjects
        for cell, measured in subject.cells
    ]
    return table(("cell", "bytes", "bit/weight", "accuracy", "divergence"), rows)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())
