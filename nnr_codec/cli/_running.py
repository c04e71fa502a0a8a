"""Running a command: exceptions to messages and exit codes, warnings, signals."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from ..errors import (
    BitstreamError,
    InvalidOptions,
    NnrError,
    NnrWarning,
    TargetNotReached,
    VerificationMismatch,
)
from ..options import TENSOR_OPTIONS
from ._common import BAD_BITSTREAM, FAILURE, MISMATCH, USAGE, Parser, warn
from ._streams import Output, standard_streams
from .text import printable

_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as shells have them


def run(
    parser: Parser, command: Callable[[argparse.Namespace], int], arguments: list[str] | None
) -> int:
    """Run a command; turn exceptions into a message on stderr and an exit code."""
    with _ended_by_signals(), standard_streams() as output, _warning(parser.prog):
        return _run(parser, command, arguments, output)


def _run(
    parser: Parser,
    command: Callable[[argparse.Namespace], int],
    arguments: list[str] | None,
    output: Output,
) -> int:
    program = parser.prog
    try:
        try:
            code = command(parser.parsed(arguments))
        except SystemExit:  # behind the help, for instance
            output.flush()
            raise
        output.flush()
        return code
    except VerificationMismatch as error:
        return _fail(program, str(error), MISMATCH)
    except BitstreamError as error:
        return _fail(program, f"bad bitstream: {error}", BAD_BITSTREAM)
    except InvalidOptions as error:
        code = FAILURE if isinstance(error, TargetNotReached) else USAGE
        return _fail(program, _in_shell(parser, error), code)
    except NnrError as error:
        return _fail(program, str(error), FAILURE)
    except BrokenPipeError:
        return FAILURE  # the reader of the results has gone
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(program, f"{name}{error.strerror or error}", FAILURE)
    except MemoryError:
        return _fail(program, "out of memory", FAILURE)
    except _Terminated:
        return _fail(program, "terminated", _TERMINATED)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", _INTERRUPTED)


@contextmanager
def _warning(program: str) -> Iterator[None]:
    """Print our warnings in the block as those of the command, each text once."""
    printed: set[str] = set()
    with warnings.catch_warnings():
        show_others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, NnrWarning):
                show_others(message, category, filename, lineno, file, line)
            elif str(message) not in printed:
                printed.add(str(message))
                warn(program, str(message))

        warnings.simplefilter("always", NnrWarning)
        warnings.showwarning = show
        yield


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: all ends as after Ctrl-C."""


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, by an exception; after the first of these signals
    others are ignored, so that what is temporary can be removed. Signals that are ignored stay so.
    """
    endings = {signal.SIGTERM: _Terminated, signal.SIGINT: KeyboardInterrupt}
    before: dict[signal.Signals, Any] = {}

    def end(number: int, frame: object) -> None:
        for handled in before:
            signal.signal(handled, signal.SIG_IGN)
        raise endings[signal.Signals(number)]

    if threading.current_thread() is threading.main_thread():  # only there can signals be handled
        handlers = {number: signal.getsignal(number) for number in endings}
        usual = (signal.SIG_DFL, signal.default_int_handler)
        before = {number: old for number, old in handlers.items() if old in usual}
    try:
        for number in before:
            signal.signal(number, end)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _in_shell(parser: Parser, error: InvalidOptions) -> str:
    """Return the message of an error, in which options have the names of the command line."""

    def dashed(word: re.Match[str]) -> str:
        return word[0].replace("_", "-") if parser.flag(word[0]) else word[0]

    tensor, _, name = error.option.rpartition(": ")
    option = parser.flag(error.option) or error.option
    if tensor and name in TENSOR_OPTIONS and parser.flag("set"):
        option = f"--set {option}"
    return re.sub(r"\b[a-z]+_[a-z_]+\b", dashed, f"{option}: {error.reason}")


def _fail(program: str, message: str, code: int) -> int:
    with suppress(OSError):  # nobody can be told
        print(f"{program}: error: {printable(message)}", file=sys.stderr)
    return code
