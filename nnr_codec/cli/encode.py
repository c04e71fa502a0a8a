"""nnr-encode: a model into an NNR bitstream."""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import fields, replace
from typing import Any

from ..checkpoints import open_checkpoint
from ..encoder import encode
from ..errors import InvalidOptions
from ..model import Model
from ..options import AUTOMATIC, PRESETS, TENSOR_OPTIONS, EncodeOptions, UnaryLength
from ..options.decomposition import OF_A_WEIGHT
from ..report import EncodeReport
from . import _common as common
from ._decomposition import (
    add_decomposition,
    check_needed,
    decompose,
    decomposition_options,
    rank_of,
    show_skipped,
)
from .text import printable, table

PROGRAM = "nnr-encode"
_UNITS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3}
_UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DEFAULTS = {field.name: field.default for field in fields(EncodeOptions)}

_USUAL_ENCODINGS = 5
"""For a target size."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    given = _parser().parse_args(arguments)
    return common.run(PROGRAM, lambda: _encode(given))


def _parser() -> argparse.ArgumentParser:
    parser = common.parser(
        PROGRAM, "Encode a model (safetensors, npz, PyTorch, ONNX) into an NNR bitstream."
    )
    parser.add_argument("input", metavar="INPUT", help="the model")
    parser.add_argument(
        "-o", "--output", metavar="OUT.nnr", help="the bitstream to write; - for standard output"
    )
    parser.add_argument("-f", "--force", action="store_true", help="overwrite the output")
    parser.add_argument("--dry-run", action="store_true", help="encode, but write nothing")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    amount.add_argument("-v", "--verbose", action="store_true", help="print a row for each tensor")
    common.add_threads(parser)
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="default",
        help="fast: no searches; best: smaller at equal error; other options win over it",
    )
    _add_quantization(parser.add_argument_group("quantization"))
    _add_coding(parser.add_argument_group("coding"))
    add_decomposition(parser.add_argument_group("decomposition"))
    _add_selection(parser.add_argument_group("selection"))
    return parser


def _add_quantization(group: Any) -> None:
    _number(group, "--qp", "quantization parameter of tensors with two or more dimensions")
    _number(group, "--nonweight-qp", "that of the others")
    _number(group, "--qp-density", "this many qp, as a power of two, double the step; 0 to 7")
    group.add_argument(
        "--target-size",
        type=_target_size,
        default=None,
        metavar="BYTES|PERCENT%",
        help="add one offset to every qp, the least with which the stream is at most so large; "
        "of the model with %%; k, M, KiB, MiB may follow a number",
    )
    _switch(group, "--dq", "dependent (trellis-coded) quantization")
    _number(group, "--lambda-scale", "weight of the rate in the quantizer's search; 0: none", float)


def _add_coding(group: Any) -> None:
    group.add_argument(
        "--profile",
        choices=("auto", "0", "1"),
        default="auto",
        help="0 first edition, 1 second edition; auto: 0 unless a tool needs 1 (default)",
    )
    text = "greater-than flags of an integer, 1 to 256; auto: few, where that is hardly larger"
    _number(group, "--unary-length", text, _unary_length)
    _number(group, "--scan-order", "0 row by row; 1 to 4 blocks that decode side by side")
    _switch(group, "--search-initialization", "search the contexts' initialization")
    _switch(group, "--row-skipping", "flag rows of zeros where that is smaller (profile 1)")
    _switch(group, "--codebook", "code by codebooks where that is smaller (with --no-dq)")
    _switch(group, "--group", "code a layer's tensors in one unit where that is smaller")
    _switch(group, "--temporal-contexts", "use the last parent's integers where that is smaller")
    _switch(group, "--history-contexts", "use all parents' non-zeros where that is smaller")
    common.add_parents(group)


def _add_selection(group: Any) -> None:
    group.add_argument(
        "--lossless", action="store_true", help="carry every tensor exactly, bit by bit"
    )
    group.add_argument(
        "--include", action="append", metavar="GLOB", help="tensors to quantize (default: all)"
    )
    group.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="tensors to carry losslessly, though included",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="GLOB=key:value,…",
        help=f"options of single tensors: {', '.join(TENSOR_OPTIONS)}",
    )


def _number(group: Any, flag: str, text: str, kind: Any = int) -> None:
    default = _DEFAULTS[flag[2:].replace("-", "_")]
    help_text = f"{text} (default: {default})"
    # Only what is given is there: the rest is the preset's.
    group.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar="N", help=help_text)


def _unary_length(text: str) -> UnaryLength:
    return "auto" if text == "auto" else int(text)


def _switch(group: Any, flag: str, text: str) -> None:
    default = _DEFAULTS[flag[2:].replace("-", "_")]
    state = {True: "on", False: "off", "auto": "automatic"}[default]
    group.add_argument(
        flag,
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help=f"{text} (default: {state})",
    )


def _target_size(text: str) -> int | float:
    """Convert a number of bytes, with a unit or not, to an int; a percentage to a fraction."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[kMG]|[KMG]iB|)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of bytes nor a percentage")
    number, unit = found.groups()
    if unit == "%":
        return float(number) / 100
    return int(float(number) * _UNITS[unit]) if unit or "." in number else int(number)


def _options(given: argparse.Namespace) -> EncodeOptions:
    own = [name for name in TENSOR_OPTIONS if name not in OF_A_WEIGHT]
    names = [*own, "qp_density", "group", "lossless", "target_size"]
    changes = {name: getattr(given, name) for name in names if hasattr(given, name)}
    return EncodeOptions.preset(
        given.preset,
        **changes,
        decomposition=decomposition_options(given),
        profile="auto" if given.profile == "auto" else int(given.profile),
        include=tuple(given.include or ("*",)),
        exclude=tuple(given.exclude),
        overrides=tuple(parse_override(text) for text in given.set),
    )


def parse_override(text: str) -> tuple[str, dict[str, Any]]:
    """Parse 'GLOB=key:value,key:value'.

    Raises:
        InvalidOptions: it has another form, an unknown key, or a value of another type.
    """
    glob, equals, assignments = text.rpartition("=")
    if not equals or not glob or not assignments:
        raise InvalidOptions("--set", f"{text!r} is not of the form GLOB=key:value,…")
    values: dict[str, Any] = {}
    for assignment in assignments.split(","):
        key, colon, value = assignment.partition(":")
        name = key.strip().replace("-", "_")
        if not colon or name not in TENSOR_OPTIONS:
            known = ", ".join(TENSOR_OPTIONS)
            raise InvalidOptions("--set", f"{assignment!r} in {text!r}: key:value, of {known}")
        values[name] = _converted(name, value.strip(), text)
    return glob, values


_KINDS = {"unary_length": _unary_length, "decompose": str, "rank": rank_of, "energy": float}


def _converted(name: str, value: str, text: str) -> Any:
    kind: Any = _KINDS.get(name) or type(_DEFAULTS[name])
    try:
        if name in AUTOMATIC and value.lower() == "auto":
            return "auto"
        if kind is bool or name in AUTOMATIC:
            return {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}[
                value.lower()
            ]
        return kind(value)
    except (KeyError, ValueError, argparse.ArgumentTypeError):
        reason = f"{value!r} in {text!r} is no value of {name}"
        raise InvalidOptions("--set", reason) from None


def _encode(given: argparse.Namespace) -> int:
    start = time.perf_counter()
    options = _options(given)
    check_needed(given, options)
    if given.output == "-":
        given.output = "/dev/stdout"
    if given.output is None and not given.dry_run:
        raise InvalidOptions("output", "needed, unless with --dry-run")
    with (
        open_checkpoint(given.input) as model,
        common.executor(given.threads) as executor,
        common.progress_bar(given.quiet, _expected_weights(model, options), "w") as advance,
    ):
        if given.output is not None:
            common.refuse_own_input(given.input, given.output)
        factorizations = None
        if options.decomposes:
            found = decompose(given, model, options, executor, advance)
            factorizations, options = found.factorizations, found.adapted(options)
            if not given.quiet:
                show_skipped(found)
        result = encode(
            model,
            None if given.dry_run else given.output,
            options,
            factorizations=factorizations,
            parents=given.parent,
            overwrite=given.force,
            executor=executor,
            progress=lambda tensor: advance(tensor.elements),
        )
    report = replace(result.report, seconds=time.perf_counter() - start)  # decomposing included
    with common.results_beside(given.output):
        _show(given, report)
    return common.DONE


def _expected_weights(model: Model, options: EncodeOptions) -> int:
    """Return how many weights will be coded, those of all the streams that are tried."""
    encodings = 1 if options.target_size is None else _USUAL_ENCODINGS
    encodings += options.decomposes  # which counts its weights, too
    return encodings * sum(parameter.size for parameter in model.values())


def _show(given: argparse.Namespace, report: EncodeReport) -> None:
    if not given.quiet:
        for glob in report.unmatched:
            common.warn(PROGRAM, f"{glob!r} matches no tensor")
        for tensor in report.tensors:
            if tensor.qp_raised:
                reason = f"coded at qp {tensor.qp}: its values are too large for a finer one"
                common.warn(PROGRAM, f"{tensor.name!r} {reason}")
    if given.json:
        common.print_json({"input": given.input, "output": given.output, **report.to_json()})
        return
    if given.quiet:
        return
    if given.verbose:
        print(_rows(report))
    print(summary(given.input, given.output if not given.dry_run else "(dry run)", report))
    sys.stdout.flush()


def _rows(report: EncodeReport) -> str:
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
        )
        for tensor in report.tensors
    ]
    return table(("tensor", "shape", "dtype", "kind", "qp", "bytes", "bit/weight", "NMSE"), rows)


def summary(source: str, output: str, report: EncodeReport) -> str:
    """Return the line that says what became of a model."""
    as_factors = sum(bool(tensor.factors) for tensor in report.tensors)
    factored = f" ({as_factors} as factors)" if as_factors else ""
    parameters = f" ({common.counted(report.parameters, 'parameter')})" if as_factors else ""
    alone = f" ({report.decomposition_nmse:.3g} by decomposition alone)" if as_factors else ""
    offset = f", qp offset {report.qp_offset:+d}" if report.encodings > 1 else ""
    return (
        f"{printable(source)} -> {printable(output)}: "
        f"{common.counted(len(report.tensors), 'tensor')}{factored}, "
        f"{common.counted(report.elements, 'weight')}{parameters}, "
        f"{common.human_bytes(report.original_bytes)} -> {common.human_bytes(report.bytes)} "
        f"({100 * report.ratio:.2f} %), {report.bits_per_weight:.3f} bit/weight, "
        f"NMSE {report.nmse:.3g}{alone}{offset}, {report.seconds:.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
