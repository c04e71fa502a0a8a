"""The decoders under judgement: those of this project in this process, others as commands."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .decoder_output import read_output
from .educational import educational_decoder
from .judging import Decoder, Outcome, Tensors

_MESSAGE_LENGTH = 200  # characters of what a decoder says

_UNCAUGHT = (
    "Traceback (most recent call last)",  # Python
    "Exception in thread ",  # Java
    "Unhandled exception",  # .NET
    "panicked at ",  # Rust
    "goroutine 1 [running]",  # Go
    "Node.js v",  # JavaScript
)
"""What interpreters and run times say of an error that the decoder did not expect."""


class BadCommand(Exception):
    """The command of a decoder lacks a placeholder, or cannot be started."""


def nnr_codec_decoder() -> Decoder:
    """nnr_codec, in this process.

    Raises:
        BadCommand: it is not installed. Others can be judged nevertheless.
    """
    try:
        import nnr_codec
    except ImportError as error:
        raise BadCommand(f"nnr_codec is not installed ({error}); --decoder names another") from None

    def decode(stream: Path, parents: Sequence[Path], base: Sequence[Path] | None) -> Tensors:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nnr_codec.NnrWarning)  # quality layers that are cut
            return nnr_codec.decode(stream, parents=parents, base=base or ())

    return _in_process(decode, nnr_codec.BitstreamError)


def educational(module: ModuleType | None = None) -> Decoder:
    """spec/educational_decoder.py in this process, or another version of it."""
    decoder = module or educational_decoder()

    def decode(stream: Path, parents: Sequence[Path], base: None) -> Tensors:
        return decoder.decode(stream.read_bytes(), [path.read_bytes() for path in parents], True)

    return _in_process(decode, ValueError, knows_bases=False)


def _in_process(
    decode: Callable[..., Tensors], refusal: type[Exception], knows_bases: bool = True
) -> Decoder:
    def run(stream: Path, parents: Sequence[Path], base: Sequence[Path] | None = None) -> Outcome:
        if base is not None and not knows_bases:
            return Outcome("not run", detail="the decoder does not know the model map")
        try:
            return Outcome("tensors", decode(stream, parents, base))
        except Exception as error:
            kind = "refused" if isinstance(error, refusal) else "crash"
            return Outcome(kind, detail=f"{type(error).__name__}: {error}")

    return run


def command(template: str, seconds: float = 60.0) -> Decoder:
    """A decoder that is started anew for each stream.

    Args:
        template: its command line, with ``{in}``; with ``{out}`` for a path ending in .npz, at
            which it writes a file or a folder; and ``{parents}``: the word that has it is repeated
            for each parent. Without ``{parents}`` it is not run on updates; likewise ``{base}``.
        seconds: time for one stream; then it is ended, with all that it has started.

    Raises:
        BadCommand: the template is no command line of this kind.
    """
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise BadCommand(f"{template!r}: {error}") from None
    if "{in}" not in template or "{out}" not in template:
        raise BadCommand(f"{template!r}: it needs {{in}} and {{out}}")

    def run(stream: Path, parents: Sequence[Path], base: Sequence[Path] | None = None) -> Outcome:
        for word, paths in (("{parents}", parents), ("{base}", None if base is None else [stream])):
            if paths and word not in template:
                return Outcome("not run", detail=f"the command takes no {word}")
        with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
            out = Path(folder, "out.npz")
            files = {"{parents}": parents, "{base}": base or ()}
            return _run(_filled(words, stream, files, out), out, seconds)

    return run


def _filled(
    words: Sequence[str], stream: Path, files: Mapping[str, Sequence[Path]], out: Path
) -> list[str]:
    filled = []
    for word in words:
        texts = [word]
        for place, paths in files.items():
            if place in word:
                texts = [word.replace(place, str(path.resolve())) for path in paths]
        for text in texts:
            filled.append(text.replace("{in}", str(stream.resolve())).replace("{out}", str(out)))
    return filled


def _run(arguments: Sequence[str], out: Path, seconds: float) -> Outcome:
    with tempfile.TemporaryFile() as errors:
        try:
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
            process = subprocess.Popen(arguments, stderr=errors, start_new_session=True, **streams)
        except (OSError, ValueError) as error:
            raise BadCommand(f"{arguments[0]!r} cannot be started: {error}") from None
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return Outcome("time-out", detail=f"no result in {seconds:g} s")
        finally:
            _end(process)
        errors.seek(max(errors.seek(0, os.SEEK_END) - 4096, 0))
        lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    status = process.returncode
    number = -status if status < 0 else status - 128  # a shell tells of a signal by 128 and more
    if number in signal.valid_signals():  # main() that returns -1 exits with 255: a refusal
        return Outcome("crash", detail=f"ended by signal {number}")
    if status:
        last = lines[-1] if lines else "no message"
        if any(mark in line for line in lines for mark in _UNCAUGHT):
            detail = f"an error that the decoder does not handle: {last[:_MESSAGE_LENGTH]}"
            return Outcome("crash", detail=detail)
        return Outcome("refused", detail=f"{last[:_MESSAGE_LENGTH]} (exit code {status})")
    return read_output(out)


def _end(process: subprocess.Popen[Any]) -> None:
    """End what a decoder has left behind as well."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
