"""The flags of nnr-encode that say what the stream is to be, and what measures it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from functools import wraps
from importlib.util import find_spec
from typing import Any

from ..calibration.divergence import OutputDivergence
from ..encoder import on_module
from ..errors import InvalidOptions
from ..model import Array
from ..options import EncodeOptions
from ..options.targets import TARGETS
from ..report import Evaluation, SearchReport
from ..user.code import load_function, naming_failures
from . import _common as common
from ._network import Network
from ._options import add_flag
from .text import table

_TEXTS = {
    "target_size": "the best quality with which the stream is no larger than this, in bytes (k, M, "
    "KiB, MiB may follow the number) or in percent of the model: one offset is added to every qp",
    "target_bits": "the same in bits per element of the model",
    "max_nmse": "the smallest stream whose squared error is at most this part of the energy of all "
    "tensors",
    "max_kl": "the smallest stream with which the outputs diverge by at most so many nats, on "
    "samples that are held back from --calibrate",
    "max_drop": "the smallest stream of which --evaluate returns at most so much less than of the "
    "model",
}
_LOSSES = {"max_nmse": "NMSE", "max_kl": "KL", "max_drop": "drop"}
_LOG = ".search.json"


def add_targets(group: Any) -> None:
    """Add the flags to a group of the parser."""
    for name, text in _TEXTS.items():
        add_flag(group, EncodeOptions, name, text)
    group.add_argument(
        "--evaluate",
        metavar="FILE.py:FUNCTION",
        help="of the module (of --module or --calibrate) with decoded weights, or without one of a "
        "dict of arrays, returns a number, more is better; called at most 8 times",
    )
    group.add_argument(
        "--report", metavar="PAGE.html", help="page of the streams that the search saw"
    )


def check_targets(given: argparse.Namespace, options: EncodeOptions) -> None:
    """Raise InvalidOptions if a target misses an option, or an option a target."""
    target = options.target
    if target == "max_kl" and given.calibrate is None:
        reason = "needs --calibrate, some of whose samples are held back to measure it"
        raise InvalidOptions(target, reason)
    if target == "max_drop" and given.evaluate is None:
        raise InvalidOptions(target, "needs --evaluate, which names a function of a score")
    if target != "max_drop" and given.evaluate is not None:
        raise InvalidOptions("evaluate", "has no effect without --max-drop")
    if given.report is not None:
        _check_report(given, target)


def _check_report(given: argparse.Namespace, target: str | None) -> None:
    if target is None:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in TARGETS)
        raise InvalidOptions("report", f"has no effect without a target: {flags}")
    if given.dry_run:
        raise InvalidOptions("report", "is not written with --dry-run: leave one out")
    if find_spec("matplotlib") is None:
        raise InvalidOptions("report", "needs matplotlib: pip install 'nnr-codec[eval]'")
    paths = [path for path in (given.input, given.output) if path is not None]
    if os.path.realpath(given.report) in map(os.path.realpath, paths):
        raise InvalidOptions("report", f"{given.report!r} is the input, or the output")
    if os.path.lexists(given.report) and not given.force:
        raise InvalidOptions("report", f"{given.report!r} exists already; -f overwrites it")


def measure_of(
    given: argparse.Namespace, options: EncodeOptions, network: Network
) -> Callable[[Any], float] | None:
    """Return what measures decoded arrays for the target, if it needs that.

    Raises what loading the user's function raises, and running the user's module.
    """
    if options.max_kl is not None and network.held_back is not None:
        with naming_failures(given.calibrate, "calibrate"):
            divergence = OutputDivergence(network.module, network.held_back)
        return _named(divergence, given.calibrate, "calibrate")
    if options.max_drop is None:
        return None
    function = load_function(given.evaluate, "evaluate")
    measure = function if network.module is None else on_module(network.module, function)
    named = _named(measure, given.evaluate, "evaluate")

    @wraps(function)
    def measured(tensors: Mapping[str, Array]) -> float:
        try:
            return named(tensors)
        except InvalidOptions as error:
            if network.module is not None:
                raise
            reason = f"{error.reason} (it is given a dict of arrays; --module names a module)"
            raise InvalidOptions(error.option, reason) from error

    return measured


def _named(measure: Callable[[Any], float], location: str, option: str) -> Callable[[Any], float]:
    """Return what measures, and names the user's file in its errors."""

    def measured(tensors: Mapping[str, Array]) -> float:
        with naming_failures(location, option):
            return measure(tensors)

    return measured


def log_path(given: argparse.Namespace, output: str | None, options: EncodeOptions) -> str | None:
    """Return the file in which a search keeps what it has seen, beside the output; None: nowhere,
    as there is no target, or no file written."""
    if output is None or given.dry_run or options.target is None:
        return None
    is_special = os.path.exists(output) and not os.path.isfile(output)
    if is_special or given.output == "-":
        return None
    folder = os.path.dirname(output)
    if folder and not os.path.isdir(folder):  # is made for this output, and goes if that fails
        output = folder
    return output + _LOG


def write_report(given: argparse.Namespace, search: SearchReport, elements: int) -> None:
    """Write the page of a search; raises what writing a file raises."""
    from ..checkpoints.atomic import atomic_output
    from ..experiments.report.search_page import search_page

    page = search_page(search, elements, os.path.basename(given.input))
    with atomic_output(given.report, overwrite=given.force) as file:
        file.write(page.encode())


def met_text(search: SearchReport | None) -> str:
    """Return the part of a summary that says how the target was met."""
    if search is None or search.target not in _LOSSES or search.target == "max_nmse":
        return ""
    loss, scores = search.met.loss, ""
    if search.reference is not None and loss is not None:
        scores = f" ({search.reference:.6g} -> {search.reference - loss:.6g})"
    return f", {_LOSSES[search.target]} {loss:.3g}{scores}"


def search_table(search: SearchReport, elements: int) -> str:
    """Return a row for each stream that a search saw."""
    header = ["qp offset", "bytes", "bit/weight", "NMSE"]
    if search.target in _LOSSES and search.target != "max_nmse":
        header.append(_LOSSES[search.target])
    return table(header, [_row(seen, elements)[: len(header)] for seen in search.evaluations])


def _row(seen: Evaluation, elements: int) -> list[str]:
    size, bits = "-", "-"
    if seen.bytes is not None:
        size, bits = str(seen.bytes), f"{8 * seen.bytes / max(elements, 1):.3f}"
    errors = ["-" if error is None else f"{error:.3g}" for error in (seen.nmse, seen.loss)]
    mark = " corrected" if seen.is_corrected else ""
    return [f"{seen.qp_offset:+d}{mark}", size, bits, *errors]


def warn_of_resumed(program: str, search: SearchReport | None) -> None:
    """Say on stderr how much of a search is that of an interrupted one."""
    if search is not None and search.resumed:
        count = common.counted(search.resumed, "stream")
        common.warn(program, f"{count} of the search had been measured before an interruption")
