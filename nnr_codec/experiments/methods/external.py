"""Any other codec, as two command lines: one encodes a model file, one decodes into another.

In the arguments, ``{model}``, ``{stream}`` and ``{decoded}`` stand for the files' paths,
``{folder}`` for the plan's folder, ``{python}`` for the Python that runs this, ``{name}`` for
option ``name`` of the plan, and ``${NAME}`` for an environment variable. A command may end its
standard output by a line of JSON with ``encode_seconds`` or ``decode_seconds``: what it measured
itself, without its start. Otherwise its whole wall time counts.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from ...checkpoints import open_checkpoint, save_checkpoint
from ...errors import InvalidOptions, NnrError
from ..checked_table import CheckedTable
from ..fingerprints import file_digest
from .base import Arrays, Decoded, Encoded

_FORMATS = (".npz", ".safetensors", ".pt")
_FILES = ("model", "stream", "decoded", "folder", "python")
_PLACEHOLDER = re.compile(r"\$\{(\w+)\}|\{(\w+)\}")
_VERSION_SECONDS = 60.0
_MESSAGE_LENGTH = 400  # characters of a failed command's last words


class CommandFailure(NnrError):
    """A codec's command could not be run, or failed."""


@dataclass(frozen=True)
class ExternalCodec:
    """Another codec at one operating point.

    Attributes:
        encode_command, decode_command: program and arguments.
        version_command: prints what version it is; empty: none is known.
        model_format: suffix of the files that it reads and writes: .npz, .safetensors or .pt.
        timeout: seconds that a command may take.
        values: (name, text) of the other options, for the arguments.
        folder: the plan's folder.
    """

    encode_command: tuple[str, ...]
    decode_command: tuple[str, ...]
    version_command: tuple[str, ...]
    model_format: str
    timeout: float
    values: tuple[tuple[str, str], ...]
    folder: str

    @classmethod
    def from_options(cls, values: Mapping[str, Any], folder: Path) -> ExternalCodec:
        """Return the codec with a plan's options; InvalidOptions if these are wrong."""
        table = CheckedTable(values, "external")
        encode, decode = _command(table, "encode"), _command(table, "decode")
        version = table.texts("version", [])
        model_format = table.value("format", str, ".npz")
        timeout = table.value("timeout", float, 3600.0)
        if not 0 < timeout < math.inf:
            raise InvalidOptions("timeout", f"{timeout!r} is not a finite number above 0")
        if model_format not in _FORMATS:
            raise InvalidOptions("format", f"{model_format!r} is none of {', '.join(_FORMATS)}")
        known = ("encode", "decode", "version", "format", "timeout")
        others = {name: value for name, value in values.items() if name not in known}
        rest = {name: v if isinstance(v, str) else repr(v) for name, v in others.items()}
        _check_names([*encode, *decode, *version], rest)
        return cls(encode, decode, version, model_format, timeout, tuple(rest.items()), str(folder))

    def encode(self, tensors: Arrays) -> Encoded:
        """Run the encoder; CommandFailure if it cannot be run, fails, or writes no stream."""
        with tempfile.TemporaryDirectory(prefix="nnr-eval-") as folder:
            model, stream = Path(folder, f"model{self.model_format}"), Path(folder, "stream")
            save_checkpoint(model, tensors)
            seconds = self._run(self.encode_command, "encode_seconds", model=model, stream=stream)
            if not stream.exists():
                raise CommandFailure(f"{self.encode_command[0]} did not write {{stream}}")
            return Encoded(stream.read_bytes(), seconds)

    def decode(self, data: bytes) -> Decoded:
        """Run the decoder; CommandFailure if it fails, InvalidModel if it writes no model."""
        with tempfile.TemporaryDirectory(prefix="nnr-eval-") as folder:
            decoded, stream = Path(folder, f"decoded{self.model_format}"), Path(folder, "stream")
            stream.write_bytes(data)
            command = self.decode_command
            seconds = self._run(command, "decode_seconds", decoded=decoded, stream=stream)
            with open_checkpoint(decoded) as model:
                return Decoded(dict(model.arrays()), seconds)

    def identity(self) -> dict[str, Any]:
        """Return the commands, the digests of the plan's files in them, the options, the version.

        Raises CommandFailure if the version cannot be told.
        """
        command = tuple(self._filled(self.version_command, {}))
        return {
            "codec": "external",
            "commands": [list(self.encode_command), list(self.decode_command)],
            "files": self._file_digests(),
            "format": self.model_format,
            "options": dict(self.values),
            "version": _version(command) if command else "",
        }

    def _file_digests(self) -> dict[str, str]:
        """Return the digests of files beside the plan that the commands name, as scripts."""
        digests = {}
        for argument in (*self.encode_command, *self.decode_command):
            path = Path(argument.replace("{folder}", self.folder))
            if "{folder}" in argument and path.is_file():
                digests[argument] = file_digest(path)
        return digests

    def _run(self, command: tuple[str, ...], key: str, **files: Path) -> float:
        """Run a command; return the seconds that it took, by its own report if it prints one."""
        filled = self._filled(command, {name: str(path) for name, path in files.items()})
        start = time.perf_counter()
        output = _output(filled, self.timeout)
        wall = time.perf_counter() - start
        return _reported_seconds(output, key) or wall

    def _filled(self, command: tuple[str, ...], files: Mapping[str, str]) -> list[str]:
        texts = {**dict(self.values), "folder": self.folder, "python": sys.executable, **files}

        def value(match: re.Match[str]) -> str:
            variable, name = match.groups()
            if variable is None:
                return texts[name]
            if not os.environ.get(variable):
                raise CommandFailure(f"the environment variable {variable} is not set")
            return os.environ[variable]

        return [_PLACEHOLDER.sub(value, argument) for argument in command]


def _output(command: Sequence[str], timeout: float) -> str:
    """Run a command; return its standard output."""
    # Files, not pipes: what a command has started, and left behind, may hold a pipe open for ever.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": errors}
            done = subprocess.run(command, check=False, timeout=timeout, **streams)
        except OSError as error:
            raise CommandFailure(f"{command[0]} cannot be run: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise CommandFailure(f"{command[0]} took over {timeout:g} s") from error
        text, message = (_whole_text(file) for file in (output, errors))
    if done.returncode:
        last = (message or text).strip()[-_MESSAGE_LENGTH:] or "no message"
        raise CommandFailure(f"{command[0]} failed with exit code {done.returncode}: {last}")
    return text


def _whole_text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


@cache
def _version(command: tuple[str, ...]) -> str:
    """Return what a command prints, once for all operating points."""
    return _output(command, _VERSION_SECONDS).strip()


def _command(table: CheckedTable, key: str) -> tuple[str, ...]:
    words = table.texts(key)
    if not words:
        raise InvalidOptions(key, "the command is empty")
    return words


def _check_names(arguments: list[str], options: Mapping[str, str]) -> None:
    named = {name for text in arguments for _, name in _PLACEHOLDER.findall(text) if name}
    for name in sorted(named - {*_FILES, *options}):
        raise InvalidOptions(name, "a command names this option, which is not there")
    for name in sorted(options.keys() - named):
        raise InvalidOptions(name, "no command names this option")


def _reported_seconds(output: str, key: str) -> float | None:
    """Return the time that the last line of a command's output reports, if it does."""
    lines = output.strip().splitlines() or [""]
    try:
        report = json.loads(lines[-1])
    except (ValueError, RecursionError):
        return None
    seconds: Any = report.get(key) if isinstance(report, dict) else None
    is_number = isinstance(seconds, int | float) and 0 <= seconds <= sys.float_info.max
    return float(seconds) if is_number else None
