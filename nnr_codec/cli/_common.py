"""What the commands share: options, errors and exit codes, threads, the progress bar."""

from __future__ import annotations

import argparse
import json
import os
import reprlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stdout,
    suppress,
)
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, NoReturn

from .. import __version__
from ..checkpoints.file_format import format_of
from ..errors import (
    BitstreamError,
    InvalidModel,
    InvalidOptions,
    UnsupportedFeature,
)
from ..factorization.model_map import MAX_QUALITY_LAYERS
from ..options import DecodeLimits
from ..options.kinds import Kind, whole
from .text import printable

DONE, FAILURE, USAGE, BAD_BITSTREAM, MISMATCH = range(5)
"""Exit codes."""

STDOUT = "/dev/stdout"
_STDOUT_PATHS = (STDOUT, "/dev/fd/1", "/proc/self/fd/1")
_MOST_THREADS = 1 << 16
_shortened = reprlib.Repr()
_shortened.maxstring = 80


class Parser(argparse.ArgumentParser):
    """A parser with the options that all commands have, whose errors are two lines at most."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(prog=program, description=description, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
        self.add_argument("--json", action="store_true", help="results as JSON on stdout")

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and end the program."""
        text = f"{self.prog}: error: {printable(message)}\n"
        self.exit(USAGE, f"{text}{self.prog} --help lists the options\n")

    def parsed(self, arguments: list[str] | None) -> argparse.Namespace:
        """Return the parsed command line; end the program if an option is unknown."""
        given, unknown = self.parse_known_args(arguments)
        for argument in unknown:
            flag = argument.partition("=")[0]
            nearest = get_close_matches(flag, self._option_string_actions, 1)
            hint = f": did you mean {nearest[0]}?" if nearest else ""
            self.error(f"unknown argument {_shortened.repr(argument)}{hint}")
        return given

    def flag(self, name: str) -> str | None:
        """Return the flag of the option that Python calls `name`, if there is one."""
        flag = f"--{name.replace('_', '-')}"
        return flag if flag in self._option_string_actions else None


def add_threads(result: Parser) -> None:
    """Add --threads."""
    result.add_argument(
        "--threads",
        type=parser_of(whole(1, _MOST_THREADS), checks=True),
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        metavar="N",
        help="threads (default: one for each processor); the result does not depend on them",
    )


def add_amount(result: Parser, row: str) -> None:
    """Add --quiet and --verbose; `row`: what has a row with the latter."""
    amount = result.add_mutually_exclusive_group()
    amount.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    amount.add_argument("-v", "--verbose", action="store_true", help=f"print a row for each {row}")


def add_parents(result: Any) -> None:
    """Add --parent to a parser or a group of options."""
    result.add_argument(
        "--parent",
        action="append",
        default=[],
        metavar="FILE",
        help="an earlier stream of the series, oldest first (the model is a difference to it)",
    )


def add_quality(result: Parser, of: str = "a file") -> None:
    """Add --quality; `of`: which file it is for."""
    result.add_argument(
        "--quality",
        type=parser_of(whole(1, MAX_QUALITY_LAYERS), checks=True),
        metavar="N",
        help=f"of {of} of quality layers: take the first N (default: all that are there)",
    )


def add_cache(result: Parser) -> None:
    """Add --cache."""
    result.add_argument(
        "--cache",
        metavar="DIR",
        help="of addresses: keep what has come in this folder, from which later runs go on; "
        "without it nothing is kept",
    )


def add_layers(result: Parser) -> None:
    """Add --layers."""
    result.add_argument(
        "--layers",
        choices=("dense", "factorized"),
        default="dense",
        help="decomposed weights as their product (default), or as their factors, with the map "
        "that nnr_codec.layers.load_into reads (entry nnr_model_map)",
    )


def add_limits(result: Parser) -> None:
    """Add --limit."""
    names = [field.name for field in fields(DecodeLimits)]
    number = parser_of(whole(0, sys.maxsize), checks=True)

    def parse(text: str) -> tuple[str, int]:
        name, _, value = text.partition("=")
        name = name.replace("-", "_")
        if name not in names:
            reason = f"is not NAME=N with one of the names {', '.join(names)}"
            raise argparse.ArgumentTypeError(f"{_shortened.repr(text)} {reason}")
        return name, number(value)

    result.add_argument(
        "--limit",
        type=parse,
        action="append",
        default=[],
        metavar="NAME=N",
        help=f"what the bitstream may ask for: {', '.join(names)}",
    )


def limits(given: argparse.Namespace) -> DecodeLimits:
    """Return the limits of the decoder that the command line gives."""
    return DecodeLimits(**dict(given.limit))


def check_output(source: str, output: str, *, overwrite: bool) -> None:
    """Raise InvalidOptions if the output is the input, or a file that is to be kept."""
    if os.path.exists(source) and os.path.exists(output) and os.path.samefile(source, output):
        raise InvalidOptions("output", f"{output!r} is the input")
    if not overwrite and os.path.isfile(output) and output not in _STDOUT_PATHS:
        raise InvalidOptions("output", f"{output!r} exists already; -f overwrites it")


@contextmanager
def recognizing_models(path: str) -> Iterator[None]:
    """Say of an input that is no bitstream, but a model file, what it is."""
    try:
        yield
    except BitstreamError as error:
        if not isinstance(error, UnsupportedFeature) and f"{path}: unit 0" not in str(error):
            raise
        try:
            kind = format_of(path)
        except InvalidModel:
            raise error from None
        reason = f"looks like a model file ({kind}), not a bitstream; nnr-encode makes one of it"
        raise BitstreamError(f"{path}: {reason}") from error


def parser_of(kind: Kind, *, checks: bool = False) -> Callable[[str], Any]:
    """Return a converter of arguments to values of a kind, whose range it checks if told to."""

    def parse(text: str) -> Any:
        try:
            return kind.convert(kind.parse(text)) if checks else kind.parse(text)
        except (ArithmeticError, KeyError, ValueError):
            reason = f"{_shortened.repr(text)} is not {kind.description}"
            raise argparse.ArgumentTypeError(reason) from None

    return parse


@contextmanager
def executor(threads: int) -> Iterator[Executor | None]:
    """Give an executor of that many threads; None for one thread."""
    if threads == 1:
        yield None
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def progress_bar(
    quiet: bool, total: float | None, unit: str
) -> Iterator[Callable[[float], object]]:
    """Give a function that advances the bar, from any thread; there is one only on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda amount: None
        return
    from tqdm import tqdm  # late: most runs have no bar

    lock = threading.Lock()
    # Without miniters, after a large step many small ones would not be drawn.
    looks: dict[str, Any] = {"unit": unit, "unit_scale": True, "leave": False, "miniters": 1}
    with tqdm(total=total, file=sys.stderr, **looks) as bar:

        def advance(amount: float) -> None:
            with lock:
                if total is not None and bar.n + amount > bar.total:
                    bar.total += total  # it takes longer than expected
                bar.update(amount)

        yield advance


def print_json(data: Any) -> None:
    """Print JSON alone on stdout."""
    json.dump(data, sys.stdout, indent=2, allow_nan=False)
    print()


def results_beside(output: str | None) -> AbstractContextManager[object]:
    """Print results on stderr if the output itself goes to stdout."""
    return redirect_stdout(sys.stderr) if output in _STDOUT_PATHS else nullcontext()


@contextmanager
def users_prints_aside(output: str | None = None) -> Iterator[str | None]:
    """Print on stderr what a user's code prints in the block, also below Python: on standard output
    are results, or the bitstream itself.

    `output`: what the block writes, of which it gives the name that it has in the block.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    inside = f"/dev/fd/{kept}" if output in _STDOUT_PATHS else output
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield inside
    except OSError as error:
        if inside != output and error.filename == inside:
            error.filename = output
        raise
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def warn(program: str, message: str) -> None:
    """Print a warning on stderr."""
    with suppress(OSError):
        print(f"{program}: warning: {printable(message)}", file=sys.stderr)


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, such as "1 tensor" and "2 tensors"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape such as 64x3x3x3; a scalar is "scalar"."""
    return "x".join(map(str, shape)) or "scalar"
