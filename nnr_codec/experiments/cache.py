"""Cells that were measured, in a folder: what a run that was interrupted goes on from.

A cell is three files: ``NAME-KEY.npz`` with its values per sample, ``NAME-KEY.stream`` with what
the method wrote, and ``NAME-KEY.json`` with its figures, which appears last; each of them complete
or not at all. Streams may be removed for their room: only handing them over needs them. Of a cell
that is being trained there is ``NAME-KEY.state``.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.atomic import atomic_output
from .cells import Cell, Facts, Measured
from .fingerprints import evaluation_fingerprint, file_digest, plain_name
from .methods.base import Arrays
from .methods.trained import TrainedCodec

_KEY_DIGITS = 16
_ENDINGS = ("json", "npz", "stream")


def cell_key(cell: Cell, facts: Facts) -> str:
    """Return the SHA-256 of all that decides a cell's figures; raises what `identity` raises."""
    import torch

    decides: dict[str, Any] = {
        "checkpoint": facts.checkpoint,
        "samples": facts.samples,
        "calibration": facts.calibration,
        "subject": cell.subject.source.rpartition(":")[2],
        "evaluation": evaluation_fingerprint(),
        "torch": torch.__version__,
    }
    file, colon, _ = cell.subject.source.rpartition(":")
    if colon:  # the files beside it as well, which it may import
        beside = sorted(Path(file).parent.glob("*.py"))
        decides["files"] = {path.name: file_digest(path) for path in beside}
    if cell.point is not None:
        decides["codec"] = cell.point.codec.identity()
    text = json.dumps(decides, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class CellCache:
    """Measured cells in a folder, which is made when the first is put there."""

    folder: Path

    def get(self, cell: Cell, key: str) -> Measured | None:
        """Return a cell; None if it is not there, or its files are damaged."""
        figures, values, _ = self._paths(cell, key)
        try:
            record = json.loads(figures.read_text(encoding="utf-8"))
            with np.load(values, allow_pickle=False) as archive:
                samples = dict(archive.items())
        except Exception:  # zip, its compressions, numpy and json have many of their own
            return None
        if not isinstance(record, Mapping) or record.get("key") != key:
            return None
        if record.get("digest") != _digest(record.get("figures"), samples):
            return None
        return Measured(record["figures"], samples)

    def stream(self, cell: Cell, key: str) -> bytes | None:
        """Return what the method wrote for a cell; None if it is not there, or damaged."""
        figures, _, kept = self._paths(cell, key)
        try:
            record = json.loads(figures.read_text(encoding="utf-8"))
            stream = kept.read_bytes()
            is_whole = record["key"] == key and record["stream"] == _sha256(stream)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return stream if is_whole else None

    def put(self, cell: Cell, key: str, measured: Measured) -> None:
        """Keep a cell; InvalidOptions or OSError if its files cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        figures, samples, stream = self._paths(cell, key)
        with atomic_output(samples, overwrite=True) as file:
            np.savez_compressed(file, **dict(measured.samples))  # type: ignore[arg-type]
        if measured.stream is not None:
            with atomic_output(stream, overwrite=True) as file:
                file.write(measured.stream)
        content = {
            "cell": cell.name,
            "key": key,
            "stream": None if measured.stream is None else _sha256(measured.stream),
            "digest": _digest(measured.record, measured.samples),
            "figures": dict(measured.record),
        }
        with atomic_output(figures, overwrite=True) as file:
            file.write(json.dumps(content, indent=1, allow_nan=False).encode())
        states = f"{glob.escape(plain_name(cell.name))}-{'?' * _KEY_DIGITS}.state"
        for state in self.folder.glob(states):  # of earlier trainings as well
            state.unlink()

    def state(self, cell: Cell, facts: Facts) -> Path:
        """Return the file that a cell's training may keep its state in until the cell is put.

        It stays the same where the codec changes, as long as the training does not.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        decides: dict[str, Any] = {"checkpoint": facts.checkpoint}
        if cell.point is not None and isinstance(cell.point.codec, TrainedCodec):
            decides |= cell.point.codec.training_identity() | {"seed": cell.point.codec.seed}
        key = _sha256(json.dumps(decides, sort_keys=True).encode())
        return self._paths(cell, key)[0].with_suffix(".state")

    def _paths(self, cell: Cell, key: str) -> tuple[Path, Path, Path]:
        """Return the files of figures, of values per sample, and of the stream."""
        stem = f"{plain_name(cell.name)}-{key[:_KEY_DIGITS]}"
        json_file, values, stream = (self.folder / f"{stem}.{end}" for end in _ENDINGS)
        return json_file, values, stream


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(figures: Any, samples: Arrays) -> str:
    """Return the SHA-256 of a cell's figures and samples: others are not taken for them."""
    state = hashlib.sha256(json.dumps(figures, sort_keys=True, default=dict).encode())
    for name, values in sorted(samples.items()):
        array = np.ascontiguousarray(values)
        state.update(f"{name!r} {array.dtype.str} {array.shape}".encode())
        state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()
