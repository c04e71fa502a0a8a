"""Cells of an experiment: one subject, coded by one method at one operating point, and judged.

What runs in workers is here: functions of this module with picklable arguments and results.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoints import open_checkpoint
from ..errors import NnrError
from ..model import Array
from ..user.code import is_interruption, what_failed
from ..user.module import sample_count
from .fingerprints import file_digest
from .measures.weight_errors import weight_errors
from .methods.base import Arrays, Codec, Decoded, Encoded
from .methods.nnr import NnrCodec
from .methods.trained import TrainedCodec
from .plan import Point, SubjectPlan

if TYPE_CHECKING:
    from .batches import Batch
    from .subject import Subject
    from .training_run import TrainingRun

SCORE = "score."
"""Before the names of scores, among a cell's values per sample."""


@dataclass(frozen=True)
class Cell:
    """What is to be measured: a network with a method; without a point the uncompressed one."""

    subject: SubjectPlan
    method: str = "uncompressed"
    point: Point | None = None

    @property
    def label(self) -> str:
        """What tells its point from the method's others; empty for the only one."""
        return self.point.label if self.point else ""

    @property
    def name(self) -> str:
        """Subject, method and point, as ``--only`` and messages have it."""
        return "/".join([self.subject.name, self.method, *filter(None, [self.label])])


@dataclass(frozen=True)
class Facts:
    """What holds for all cells of a subject.

    Attributes:
        checkpoint, samples: digests of the model file and of the measured inputs and targets.
        calibration: digest of the inputs and targets to calibrate with; empty: there are none.
        sample_count: measured samples.
        primary: name of the score that stands for accuracy.
        divergence: what the divergence is.
        parameters: elements of the network's parameters; statistics of batch norm are none.
        macs: multiply-accumulates for one sample; None where some are not known. A cell whose
            layers run on factors has its own figures of both, in its record.
    """

    checkpoint: str
    samples: str
    calibration: str
    sample_count: int
    primary: str
    divergence: str
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class Measured:
    """A cell that was measured.

    Attributes:
        record: its figures, JSON-ready.
        samples: its values per sample: ``score.NAME``, ``divergence``, ``agreement``; of the
            uncompressed network ``outputs`` as well.
        stream: what the method wrote, until it is kept; None: of the uncompressed network, and of a
            cell whose stream is in the cache, or nowhere.
    """

    record: Mapping[str, Any]
    samples: Arrays
    stream: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Failure:
    """A cell, or what it needs, that failed, and the reason."""

    reason: str


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns, or a `Failure`: subjects and codecs are anybody's code."""
    try:
        return function(*arguments)
    except NnrError as error:
        return Failure(str(error))
    except MemoryError:
        return Failure("out of memory")
    except BaseException as error:  # of code that ends the program as well
        if is_interruption(error):
            raise
        return Failure(what_failed(error))


def examine(plan: SubjectPlan, data: Path | None) -> Facts:
    """Find out what holds for all cells of a subject: reads its model and all of its samples."""
    from .measures.complexity import subject_complexity

    subject = _subject(plan, data)
    digest, count = _samples_digest(subject.batches())
    calibration, _ = _samples_digest(subject.calibration()) if subject.calibration else ("", 0)
    with _one_thread():
        cost = subject_complexity(subject)
    digests = (file_digest(subject.checkpoint), digest, calibration)
    metric, macs = subject.metric, None if cost.unknown else cost.macs
    return Facts(*digests, count, metric.primary, metric.divergence, cost.parameters, macs)


def measure(
    cell: Cell, data: Path | None, reference: Array | None = None, state: Path | None = None
) -> Measured:
    """Encode, decode and evaluate.

    `reference` are the outputs of the uncompressed network; None for that network itself. `state`
    is where a training may keep what it goes on from.
    """
    subject = _subject(cell.subject, data)
    with open_checkpoint(subject.checkpoint) as model:
        tensors = dict(model.arrays())
    weights = sum(values.size for values in tensors.values())
    if cell.point is None:
        record, samples = _evaluated(subject, tensors, None)
        return Measured(_sizes(4 * weights, weights) | record, samples)
    codec = cell.point.codec
    if isinstance(codec, TrainedCodec):
        encoded = codec.encode_trained(_training_run(subject, data, state))
    else:
        encoded = _encoded(cell.subject, codec, tensors, data)
    decoded = codec.decode(encoded.data)
    record, samples = _evaluated(subject, decoded.tensors, reference)
    record = {
        **_sizes(len(encoded.data), weights),
        "breakdown": dict(encoded.breakdown),
        "yardsticks": dict(encoded.yardsticks),
        "unmatched_globs": list(encoded.unmatched_globs),
        **record,
        **weight_errors(tensors, decoded),
        **_factorized_cost(subject, decoded),
        "encode_seconds": encoded.seconds,
        "decode_seconds": decoded.seconds,
    }
    return Measured(record, samples, encoded.data)


def _encoded(subject: SubjectPlan, codec: Codec, tensors: Arrays, data: Path | None) -> Encoded:
    if not isinstance(codec, NnrCodec) or codec.calibration_stride is None:
        return codec.encode(tensors)
    from .evaluation import calibration_of

    with _one_thread():
        known = calibration_of(
            subject.source,
            data,
            codec.calibration_stride,
            has_moments=codec.options.decomposes,
        )
        corrector = known.corrections(codec.options)
        return codec.encode(tensors, known.calibration, corrector)


def _training_run(subject: Subject, data: Path | None, state: Path | None) -> TrainingRun:
    from .evaluation import trained_module
    from .training_run import TrainingRun

    return TrainingRun(subject, trained_module(subject).eval(), data, seed=0, state=state)


def _factorized_cost(subject: Subject, decoded: Decoded) -> dict[str, Any]:
    """Return parameters and MACs of the network whose layers run on the factors, if there are."""
    if decoded.factored_stream is None:
        return {}
    from .measures.complexity import factorized_complexity

    with _one_thread():
        cost = factorized_complexity(subject, decoded.factored_stream)
    return {"parameters": cost.parameters, "macs": None if cost.unknown else cost.macs}


def _sizes(count: int, weights: int) -> dict[str, Any]:
    return {"bytes": count, "bits_per_weight": 8 * count / weights, "ratio": count / (4 * weights)}


def _evaluated(
    subject: Subject, tensors: Arrays, reference: Array | None
) -> tuple[dict[str, Any], dict[str, Array]]:
    from .evaluation import evaluate

    start = time.perf_counter()
    with _one_thread():
        evaluation = evaluate(subject, tensors, reference)
    record = {
        "scores": {name: _mean(values) for name, values in evaluation.scores.items()},
        "agreement": _mean(evaluation.agreement),
        "divergence": _mean(evaluation.divergence),
        "evaluate_seconds": time.perf_counter() - start,
    }
    samples = {SCORE + name: values for name, values in evaluation.scores.items()}
    samples |= {"divergence": evaluation.divergence, "agreement": evaluation.agreement}
    return record, samples | ({} if evaluation.outputs is None else {"outputs": evaluation.outputs})


def _mean(values: Array) -> float | None:
    """Return the mean, or None where it is not finite, which JSON cannot say."""
    mean = float(np.mean(values, dtype=np.float64))
    return mean if math.isfinite(mean) else None


def _subject(plan: SubjectPlan, data: Path | None) -> Subject:
    from .subject_source import find_subject

    subject = find_subject(plan.source, data, stride=plan.stride, limit=plan.limit)
    return replace(subject, name=plan.name)


def _samples_digest(batches: Iterable[Batch]) -> tuple[str, int]:
    """Return the SHA-256 of all inputs and targets, and the number of samples."""
    state = hashlib.sha256()
    count = 0
    for inputs, targets in batches:
        count += sample_count(inputs)
        for part in (*_parts(inputs), None, *_parts(targets)):
            array = np.ascontiguousarray(part if part is not None else [])
            state.update(f"{array.dtype.str}{array.shape}".encode())
            state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest(), count


def _parts(values: Any) -> tuple[Any, ...]:
    if isinstance(values, tuple):
        return tuple(part for value in values for part in _parts(value))
    return () if values is None else (values,)


class _SharedLimit:
    """Keeps torch's number of threads from the first of some calls that overlap to the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._before = 1

    def __enter__(self) -> None:
        import torch

        with self._lock:
            if self._calls == 0:
                self._before = torch.get_num_threads()
            self._calls += 1

    def __exit__(self, *error: object) -> None:
        import torch

        with self._lock:
            self._calls -= 1
            if self._calls == 0:
                torch.set_num_threads(self._before)


_shared_limit = _SharedLimit()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch work with one thread: sums come in one order, and cells run side by side."""
    import torch

    with _shared_limit:
        torch.set_num_threads(1)  # by each thread, as OpenMP keeps a number for each
        yield
