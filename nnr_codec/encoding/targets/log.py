"""What a search has seen, in a file if it is to go on after an interruption."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...calibration.moments import Calibration
from ...checkpoints.atomic import atomic_output
from ...errors import InvalidOptions, TargetNotReached
from ...factorization.forms import FactoredWeight
from ...model import Model
from ...options import EncodeOptions
from ...report import Evaluation
from ...support.digest import ModelDigest
from ..updates.update_source import UpdateSource

_FORMAT = "nnr_codec search, version 1"


@dataclass
class SearchLog:
    """What a search has seen.

    Attributes:
        known: streams that were made before, by their offset.
        reference: the score of the model itself, if it was measured.
    """

    known: dict[int, Evaluation] = field(default_factory=dict)
    reference: float | None = None

    def add(self, seen: Evaluation) -> None:
        """Note a stream."""
        self.known[seen.qp_offset] = seen

    def note_reference(self, score: float) -> None:
        """Note the score of the model itself."""
        self.reference = score

    def forget(self) -> None:
        """Forget all streams."""
        self.known.clear()


@dataclass
class _FileLog(SearchLog):
    """A log that is in a file after each change."""

    path: str = ""
    key: str = ""

    def add(self, seen: Evaluation) -> None:
        super().add(seen)
        self._write()

    def note_reference(self, score: float) -> None:
        super().note_reference(score)
        self._write()

    def _write(self) -> None:
        evaluations = [asdict(seen) for seen in self.known.values()]
        entry = {"format": _FORMAT, "key": self.key, "reference": self.reference}
        text = json.dumps({**entry, "evaluations": evaluations}, indent=1)
        with atomic_output(self.path, overwrite=True) as file:
            file.write(text.encode())


@contextmanager
def kept_log(path: str | os.PathLike[str] | None, key: Callable[[], str]) -> Iterator[SearchLog]:
    """Give the log of a search around the block, which goes with its end, but stays in the file if
    the block is interrupted, or fails otherwise than because the target is out of reach.

    Args:
        path: the file; None: there is none.
        key: returns what stands for all that the search depends on; a log with another key counts
            for nothing.

    Raises:
        InvalidOptions: the file is something else.
        OSError: it cannot be read or written.
    """
    if path is None:
        yield SearchLog()
        return
    text = os.fspath(path)
    log = _FileLog(path=text, key=key())
    _read(log)
    try:
        yield log
    except TargetNotReached:
        _remove(text)
        raise
    _remove(text)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _read(log: _FileLog) -> None:
    """Read what an earlier search of the same key has left, if it has."""
    try:
        with open(log.path, "rb") as file:
            entry = json.loads(file.read())
        if entry["format"] != _FORMAT:
            raise ValueError
        if entry["key"] != log.key:
            return
        evaluations = [Evaluation(**seen) for seen in entry["evaluations"]]
        log.reference = entry["reference"]
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError, RecursionError):
        reason = f"{log.path!r} is not what a search keeps: remove it, or name another file"
        raise InvalidOptions("resume", reason) from None
    log.known |= {seen.qp_offset: seen for seen in evaluations}


def search_key(
    model: Model,
    options: EncodeOptions,
    factorizations: Mapping[str, FactoredWeight],
    calibration: Calibration | None,
    evaluate: Callable[[Any], float] | None,
    update: UpdateSource | None = None,
) -> str:
    """Return 64 hexadecimal digits that stand for what the losses of streams depend on.

    The bound of the target is not among it. Of `evaluate` it is the attribute `fingerprint`, if it
    has one, or else the file that the function is in: what it reads is not known.
    """
    state = ModelDigest()
    for name, values in model.arrays():
        state.update(name, values)
    for name, weight in factorizations.items():
        for number, factor in enumerate(weight.factors):
            state.update(f"{name} {weight.form} {number}", factor)
    if calibration is not None:
        for name, moments in calibration.moments.items():
            state.update(name, moments.blocks)
        for name, result in calibration.result.items():
            for part in (result.columns, result.rows):
                if part is not None:
                    state.update(name, part)
        for name, sensitivity in calibration.sensitivities.items():
            state.update(name, np.array(sensitivity))
    norms = calibration.norms if calibration is not None else ()
    parts = [state.hexdigest(), repr(options.without_target()), str(options.target), repr(norms)]
    parts.append("" if evaluate is None else _fingerprint(evaluate))
    parts += [] if update is None else [update.fingerprint()]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _fingerprint(evaluate: Any) -> str:
    known = getattr(evaluate, "fingerprint", None)
    if isinstance(known, str):
        return known
    function = inspect.unwrap(evaluate)
    try:
        file = inspect.getsourcefile(function)
        with open(file or "", "rb") as source:
            text = hashlib.sha256(source.read()).hexdigest()
    except (TypeError, OSError):  # an object, or a function that was typed in
        text = ""
    return f"{getattr(function, '__qualname__', type(function).__qualname__)} {text}"
