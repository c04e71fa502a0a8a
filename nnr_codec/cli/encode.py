"""nnr-encode: a model into an NNR bitstream."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from ..checkpoints import open_checkpoint
from ..encoder import encode
from ..errors import InvalidOptions, NnrWarning
from ..model import Model
from ..options import PRESETS, EncodeOptions
from ..report import CorrectionReport, EncodeReport, Stage, TensorReport, size_text
from . import _common as common
from . import _files
from ._decomposition import add_decomposition, check_needed, decompose, show_skipped
from ._network import network_of
from ._options import add_options, encode_options
from ._running import run
from ._targets import (
    add_targets,
    check_targets,
    log_path,
    measure_of,
    met_text,
    search_table,
    warn_of_resumed,
    write_report,
)
from ._updates import add_update_options, update_arguments, update_files
from .text import printable, table

PROGRAM = "nnr-encode"
_USUAL_ENCODINGS, _USUAL_MEASURED = 3, 5
"""Streams that are usually tried for a target size, and for one of quality."""

_SHARES: dict[Stage, float] = {
    "surveyed": 1 / 8,
    "chosen": 1 / 8,
    "quantized": 1 / 4,
    "coded": 1 / 2,
    "measured": 1 / 2,
    "verified": 1 / 2,
}
"""Of a weight, by which the progress bar advances; powers of two, whose sums are exact."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run(_parser(), _encode, arguments)


def _parser() -> common.Parser:
    parser = common.Parser(
        PROGRAM, "Encode a model (safetensors, npz, PyTorch, ONNX) into an NNR bitstream."
    )
    parser.add_argument(
        "input", metavar="INPUT", help="the model: a file, a folder, or - for standard input"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT.nnr",
        help="the bitstream to write, - for standard output; of a folder also FOLDER/, which gets "
        "model.nnr and what lies beside the weights",
    )
    parser.add_argument(
        "--key", help="where a PyTorch file has the state dict, such as model.encoder; . outermost"
    )
    parser.add_argument("-f", "--force", action="store_true", help="overwrite the output")
    parser.add_argument("--dry-run", action="store_true", help="encode, but write nothing")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="decode the bitstream and compare it with the model before it is written",
    )
    common.add_amount(parser, "tensor")
    common.add_threads(parser)
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="default",
        help="fast: no searches; best: each tensor's step by its size, smaller at equal results; "
        "other options win over it",
    )
    add_targets(parser.add_argument_group("targets, of which one may be given"))
    add_options(parser)
    add_update_options(parser)
    add_decomposition(parser.add_argument_group("decomposition"))
    return parser


def _encode(given: argparse.Namespace) -> int:
    start = time.perf_counter()
    options = encode_options(given)
    check_targets(given, options)
    check_needed(given, options)
    output = _output(given)
    with (
        _files.model_file(given.input) as path,
        open_checkpoint(path, key=given.key) as model,
        _files.around(given.input, None if given.dry_run else given.output, overwrite=given.force),
        common.executor(given.threads) as executor,
        common.progress_bar(given.quiet, _expected_work(given, model, options), "w") as advance,
        _prints_aside(given, output) as output_inside,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", NnrWarning)  # `_show` prints them
        if output is not None:
            _files.refuse_inputs(output, [*model.files, *_files_named(given)])
        left_out = _files.left_out_notes(given.input, given.output, model.files)
        encoded = _encoded(given, model, options, output, output_inside, executor, advance)
    seconds = time.perf_counter() - start  # decomposing included
    report = replace(encoded, seconds=seconds, notes=(*encoded.notes, *left_out))
    with common.results_beside(output):
        _show(given, report)
    return common.DONE


def _encoded(
    given: argparse.Namespace,
    model: Model,
    options: EncodeOptions,
    output: str | None,
    output_inside: str | None,
    executor: Executor | None,
    advance: Callable[[float], object],
) -> EncodeReport:
    """Calibrate, decompose and encode as the command line says; return the report.

    `output_inside`: the name that the output has now.
    """
    network, factorizations = network_of(given, model, options), None
    if options.decomposes:
        decomposition = decompose(network, model, options, executor, advance)
        factorizations = decomposition.factorizations
        options = decomposition.adapted(options)
        advance(_coding_work(given, options) * decomposition.saved)  # none of it is to be coded
        if not given.quiet:
            show_skipped(decomposition)
    result = encode(
        model,
        None if given.dry_run else output_inside,
        options,
        factorizations=factorizations,
        calibration=network.calibration,
        evaluate=measure_of(given, options, network),
        corrector=network.corrections,
        execution=network.execution,
        parents=given.parent,
        **update_arguments(given),
        overwrite=given.force,
        resume=log_path(given, output, options),
        executor=executor,
        on_stage=lambda stage, elements: advance(_SHARES[stage] * elements),
        verify=given.verify,
        low_memory=given.low_memory,
    )
    return result.report


def _output(given: argparse.Namespace) -> str | None:
    """Return the file that the bitstream goes to, if to any.

    Raises:
        InvalidOptions: it is missing, has the name of something else, or is to be kept.
    """
    if given.output is None:
        if not given.dry_run:
            raise InvalidOptions("output", "is missing: name a file to write, or give --dry-run")
        return None
    if given.output == "-":
        return common.STDOUT
    output = _files.stream_output(given.output, given.input)
    common.check_output(given.input, output, overwrite=given.force or given.dry_run)
    _files.check_ending(output)
    return output


def _prints_aside(
    given: argparse.Namespace, output: str | None
) -> AbstractContextManager[str | None]:
    """Keep what a user's code prints out of the output, if there is such code."""
    return common.users_prints_aside(output) if _functions(given) else nullcontext(output)


def _functions(given: argparse.Namespace) -> list[str]:
    """Return the user's functions that the command line names."""
    return [text for text in (given.module, given.calibrate, given.evaluate) if text]


def _files_named(given: argparse.Namespace) -> list[str]:
    """Return the files that the command line names beside the model."""
    return [*update_files(given), *(text.rpartition(":")[0] for text in _functions(given))]


def _expected_work(given: argparse.Namespace, model: Model, options: EncodeOptions) -> float:
    """Return how many weights the bar counts, for all that is done to them."""
    coded = sum(parameter.size for parameter in model.values() if parameter.tied_to is None)
    weights = sum(parameter.size for parameter in model.values())
    verified = _SHARES["verified"] if given.verify else 0.0
    return _coding_work(given, options) * coded + (options.decomposes + verified) * weights


def _coding_work(given: argparse.Namespace, options: EncodeOptions) -> float:
    """Return how often the bar counts a weight while it is coded, in all streams that are tried."""
    each = _SHARES["chosen"] + _SHARES["quantized"] + _SHARES["coded"]
    encodings = 1
    if options.target is not None:
        is_measured = not options.has_target_size
        encodings = _USUAL_MEASURED if is_measured else _USUAL_ENCODINGS
        each += _SHARES["measured"] * is_measured
    encodings += (given.calibrate is not None and options.corrects) * (1 + options.correct)
    return _SHARES["surveyed"] + encodings * each


def _show(given: argparse.Namespace, report: EncodeReport) -> None:
    if given.report is not None and report.search is not None:
        write_report(given, report.search, report.elements)
    if not given.quiet:
        for glob in report.unmatched:
            common.warn(PROGRAM, f"{glob!r} matches no tensor")
        for note in report.notes:
            common.warn(PROGRAM, note)
        warn_of_resumed(PROGRAM, report.search)
    if given.json:
        common.print_json({"input": given.input, "output": given.output, **report.to_json()})
        return
    if given.quiet:
        return
    if given.verbose:
        print(_rows(report))
        if report.calibrated:
            print(f"calibrated with {report.calibrated}; loss: added to the result's divergence")
        if report.search is not None:
            print("", search_table(report.search, report.elements), "", sep="\n")
    print(summary(given.input, given.output if not given.dry_run else "(dry run)", report))


def _rows(report: EncodeReport) -> str:
    more = _more_columns(report)
    rows = [
        (
            printable(tensor.name),
            common.shape_text(tensor.shape),
            tensor.dtype,
            tensor.kind,
            "-" if tensor.qp is None else str(tensor.qp),
            str(tensor.bytes) if tensor.bytes else "-",
            f"{tensor.bits_per_weight:.2f}" if tensor.bytes else "-",
            f"{tensor.nmse:.2e}" if tensor.squared_error else "-",
            *(text(tensor) for text in more.values()),
        )
        for tensor in report.tensors
    ]
    rows += [
        (
            printable(extra.name),
            common.shape_text(extra.shape),
            extra.dtype,
            printable(extra.kind),
            *("-" * (4 + len(more))),
        )
        for extra in report.extras
    ]
    titles = ["tensor", "shape", "dtype", "kind", "qp", "bytes", "bit/weight", "NMSE"]
    return table((*titles, *more), rows)


def _more_columns(report: EncodeReport) -> dict[str, Callable[[TensorReport], str]]:
    """Return the columns that only some encodings need, by their titles."""
    columns: dict[str, Callable[[TensorReport], str]] = {}
    if report.result_loss is not None:
        columns["loss"] = lambda t: "-" if t.result_loss is None else f"{t.result_loss:.2e}"
    if any(tensor.step_by not in (None, "options") for tensor in report.tensors):
        columns["qp by"] = lambda t: t.step_by or "-"
    if any(tensor.feedback is not None for tensor in report.tensors):
        columns["feedback"] = _feedback_text
    return columns


def _feedback_text(tensor: TensorReport) -> str:
    if tensor.feedback is None:
        return "-"
    return f"{tensor.feedback}{f' ({tensor.feedback_reason})' if tensor.feedback_reason else ''}"


def summary(source: str, output: str, report: EncodeReport) -> str:
    """Return the line that sums an encoding up."""
    as_factors = sum(bool(tensor.factors) for tensor in report.tensors)
    factored = f" ({as_factors} as factors)" if as_factors else ""
    parameters = f" ({common.counted(report.parameters, 'parameter')})" if as_factors else ""
    alone = f" ({report.decomposition_nmse:.3g} by decomposition alone)" if as_factors else ""
    offset = f", qp offset {report.qp_offset:+d}" if report.qp_offset else ""
    folded = f", {common.counted(len(report.folded), 'folded norm')}" if report.folded else ""
    return (
        f"{printable(source)} -> {printable(output)}: "
        f"{common.counted(len(report.tensors), 'tensor')}{factored}, "
        f"{common.counted(report.elements, 'weight')}{parameters}, "
        f"{size_text(report.original_bytes)} -> {size_text(report.bytes)} "
        f"({100 * report.ratio:.2f} %), {report.bits_per_weight:.3f} bit/weight, "
        f"NMSE {report.nmse:.3g}{alone}{_worst(report)}"
        f"{met_text(report.search)}{offset}{folded}"
        f"{_corrected(report.correction)}"
        f", {report.seconds:.2f} s"
    )


def _corrected(correction: CorrectionReport | None) -> str:
    """Return the part of the line that says what was corrected."""
    if correction is None:
        return ""
    counts = {"moved weight": correction.weights, "corrected vector": correction.tensors}
    parts = [common.counted(len(names), what) for what, names in counts.items() if names]
    held = f"KL held back {correction.before:.3g} -> {correction.after:.3g}"
    return f", {', '.join(parts)} ({held})"


def _worst(report: EncodeReport) -> str:
    """Return the part of the line that names the tensor which lost most of its energy."""
    worst = report.worst
    return f" ({printable(worst.name)}: {worst.nmse:.3g})" if worst and worst.nmse else ""


if __name__ == "__main__":
    sys.exit(main())
