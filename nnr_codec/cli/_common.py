"""What the commands share: options, errors and exit codes, threads, the progress bar."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from typing import Any

from .. import __version__
from ..errors import BitstreamError, InvalidOptions, NnrError
from ..options import DecodeLimits
from ..options.kinds import Kind, whole
from .text import printable

DONE, FAILURE, USAGE, BAD_BITSTREAM, MISMATCH = range(5)
"""Exit codes."""

_STDOUT_PATHS = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_MOST_THREADS = 1 << 16
_INTERRUPTED = 130  # as shells have it for SIGINT


class VerificationMismatch(NnrError):
    """The decoded tensors do not have the digest that was given."""


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all commands have."""
    result = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    result.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    result.add_argument("--json", action="store_true", help="results as JSON on stdout")
    return result


def add_threads(result: argparse.ArgumentParser) -> None:
    """Add --threads."""
    result.add_argument(
        "--threads",
        type=parser_of(whole(1, _MOST_THREADS), checks=True),
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        metavar="N",
        help="threads (default: one for each processor); the result does not depend on them",
    )


def add_parents(result: Any) -> None:
    """Add --parent to a parser or a group of options."""
    result.add_argument(
        "--parent",
        action="append",
        default=[],
        metavar="FILE",
        help="an earlier stream of the series, oldest first (the model is a difference to it)",
    )


def add_layers(result: argparse.ArgumentParser) -> None:
    """Add --layers."""
    result.add_argument(
        "--layers",
        choices=("dense", "factorized"),
        default="dense",
        help="decomposed weights as their product (default), or as their factors, with the map "
        "that nnr_codec.layers.load_into reads (entry nnr_model_map)",
    )


def add_limits(result: argparse.ArgumentParser) -> None:
    """Add --limit."""
    names = ", ".join(field.name for field in fields(DecodeLimits))
    result.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=N",
        help=f"what the bitstream may ask for: {names}",
    )


def limits(given: argparse.Namespace) -> DecodeLimits:
    """Return the limits that --limit asks for.

    Raises:
        InvalidOptions: an unknown limit, or no whole number.
    """
    values: dict[str, int] = {}
    known = {field.name for field in fields(DecodeLimits)}
    for text in given.limit:
        name, _, value = text.partition("=")
        name = name.replace("-", "_")
        if name not in known or not value.isdecimal():
            reason = f"{text!r} is not NAME=N with one of the names {', '.join(sorted(known))}"
            raise InvalidOptions("--limit", reason)
        values[name] = int(value)
    return DecodeLimits(**values)


def refuse_own_input(source: str, output: str) -> None:
    """Check that the output is not the input.

    Raises:
        InvalidOptions: `output` is the same file as `source`.
    """
    if os.path.exists(source) and os.path.exists(output) and os.path.samefile(source, output):
        raise InvalidOptions("output", f"{output!r} is the input")


def parser_of(kind: Kind, *, checks: bool = False) -> Callable[[str], Any]:
    """Return a converter of arguments to values of a kind, whose range it checks if told to."""

    def parse(text: str) -> Any:
        try:
            return kind.convert(kind.parse(text)) if checks else kind.parse(text)
        except (ArithmeticError, KeyError, ValueError):
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind.description}") from None

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
def progress_bar(quiet: bool, total: int | None, unit: str) -> Iterator[Callable[[int], object]]:
    """Give a function that advances the bar; there is one only on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda amount: None
        return
    from tqdm import tqdm  # late: most runs have no bar

    with tqdm(total=total, unit=unit, unit_scale=True, leave=False, file=sys.stderr) as bar:

        def advance(amount: int) -> None:
            if total is not None and bar.n + amount > bar.total:
                bar.total += total  # it takes longer than expected
            bar.update(amount)

        yield advance


def print_json(data: Any) -> None:
    """Print JSON alone on stdout."""
    json.dump(data, sys.stdout, indent=2, allow_nan=False)
    print()


@contextmanager
def results_beside(output: str | None) -> Iterator[None]:
    """Print results on stderr if the output itself goes to stdout."""
    if output in _STDOUT_PATHS:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


def run(program: str, command: Callable[[], int]) -> int:
    """Run a command; turn exceptions into a message on stderr and an exit code."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except VerificationMismatch as error:
        return _fail(program, str(error), MISMATCH)
    except BitstreamError as error:
        return _fail(program, f"bad bitstream: {error}", BAD_BITSTREAM)
    except InvalidOptions as error:
        return _fail(program, str(error), USAGE)
    except NnrError as error:
        return _fail(program, str(error), FAILURE)
    except BrokenPipeError:
        # The reader of the results has gone: nothing must be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(program, f"{name}{error.strerror or error}", FAILURE)
    except MemoryError:
        return _fail(program, "out of memory", FAILURE)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", _INTERRUPTED)


def _fail(program: str, message: str, code: int) -> int:
    print(f"{program}: error: {printable(message)}", file=sys.stderr)
    return code


def warn(program: str, message: str) -> None:
    """Print a warning on stderr."""
    print(f"{program}: warning: {printable(message)}", file=sys.stderr)


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, such as "1 tensor" and "2 tensors"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape such as 64x3x3x3; a scalar is "scalar"."""
    return "x".join(map(str, shape)) or "scalar"
