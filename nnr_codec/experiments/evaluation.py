"""Running a network under test on its samples, with given tensors, or to calibrate with it.

On the processor, without gradients, in evaluation mode, and with a fixed seed for whatever draws
numbers: the same tensors give the same outputs, on the same machine with as many threads.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnr_codec.calibration.calibrate import calibrate
from nnr_codec.calibration.gradients import OutputGradients
from nnr_codec.calibration.held_back import KeptBatches
from nnr_codec.calibration.moments import Calibration
from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.errors import InvalidModel, InvalidOptions, NnrError
from nnr_codec.experiments.batches import thinned
from nnr_codec.experiments.fingerprints import file_digest
from nnr_codec.experiments.measures.metrics import AGREEMENT
from nnr_codec.experiments.subject import Subject
from nnr_codec.experiments.subject_source import find_subject
from nnr_codec.model import Array, Model
from nnr_codec.options import EncodeOptions
from nnr_codec.training.corrections import Corrections
from nnr_codec.user.module import apply, load_state, sample_count

SEED = 0

_one_calibrates = threading.Lock()


@dataclass(frozen=True)
class Evaluation:
    """What a network's outputs are worth: everything per sample, (samples,).

    Attributes:
        scores: by name, bool or float; larger is better; `subject.metric.primary` is among them.
        divergence: from the uncompressed network, 0 and more; inf where outputs are not finite.
        agreement: with the uncompressed network's decisions, bool or float in 0..1.
        outputs: (samples, ...); kept by the reference run alone.
    """

    scores: dict[str, Array]
    divergence: Array
    agreement: Array
    outputs: Array | None = None


def evaluate(
    subject: Subject, tensors: Mapping[str, Array], reference: Array | None = None
) -> Evaluation:
    """Load `tensors` into a new module of `subject`, run all samples, and judge the outputs.

    Args:
        subject: the network, its samples, and its metric.
        tensors: those of the module's state dict, by name. The counters of batch norm
            (`num_batches_tracked`) may be absent.
        reference: outputs of the uncompressed network. Without it this is the reference run:
            divergence and agreement are those with itself, and its outputs are kept.

    Raises:
        InvalidModel: a tensor is missing, additional, of another shape or of a type that cannot be
            loaded; the module fails or returns no tensor with samples along its first dimension;
            there are no samples; `reference` is of other outputs than this subject's; or, of the
            uncompressed network, an output is not finite.
    """
    with _naming(subject.name), torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(SEED)
        module = subject.module()
        load_state(module, Model.from_arrays(tensors), strict=True)
        outputs, targets = _run(subject, module.eval())
        metric = subject.metric
        expected = outputs if reference is None else reference
        if outputs.shape != expected.shape:
            reason = f"outputs are {outputs.shape}, of the uncompressed network {expected.shape}"
            raise InvalidModel(subject.name, reason)
        divergence = metric.divergence_from(outputs, expected)
        agreement = metric.agreement(outputs, expected)
        scores = metric.scores(outputs, targets)
        if metric.primary == AGREEMENT:
            scores = {AGREEMENT: agreement, **scores}
    return Evaluation(scores, divergence, agreement, outputs if reference is None else None)


def trained_module(subject: Subject) -> torch.nn.Module:
    """Return a new module with the checkpoint's tensors; raises what `load_state` raises."""
    module = subject.module()
    with open_checkpoint(subject.checkpoint) as model:
        load_state(module, model, strict=True)
    return module


def _run(subject: Subject, module: torch.nn.Module) -> tuple[Array, Any]:
    outputs: list[Array] = []
    targets: list[Any] = []
    for inputs, expected in subject.batches():
        result = apply(module, inputs)
        if not isinstance(result, torch.Tensor):
            kind = type(result).__name__
            raise InvalidModel(subject.name, f"its module returns a {kind}, not a tensor")
        if result.shape[:1] != (sample_count(inputs),):
            reason = f"its module returns {tuple(result.shape)} for {sample_count(inputs)} samples"
            raise InvalidModel(subject.name, reason)
        result = result if result.dtype == torch.float64 else result.float()
        outputs.append(result.numpy())
        targets.append(expected)
    if not outputs:
        raise InvalidModel(subject.name, "has no samples")
    return np.concatenate(outputs), _joined(targets)


def _joined(targets: list[Any]) -> Any:
    first = targets[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(_joined(list(part)) for part in zip(*targets, strict=True))
    return np.concatenate([np.asarray(part) for part in targets])


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the subject in whatever its module and samples raise."""
    try:
        yield
    except NnrError:
        raise
    except Exception as error:
        raise InvalidModel(name, f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Calibrated:
    """A subject's uncompressed network, and what samples tell of it.

    Attributes:
        calibration: how its result feels errors, and moments of inputs if they are wanted.
        module: the network, of which whoever puts other tensors in it takes a copy: cells may be
            measured side by side.
        batches: the first of the samples.
    """

    calibration: Calibration
    module: torch.nn.Module
    batches: list[Any]

    def corrections(self, options: EncodeOptions) -> Corrections | None:
        """Return what corrects vectors after quantization; None: the options want nothing so."""
        if not options.corrects:
            return None
        return Corrections.by_options(options, copy.deepcopy(self.module), self.batches)


def calibration_of(
    source: str, data: Path | None, stride: int, *, has_moments: bool = True
) -> Calibrated:
    """Return what is known of a subject's uncompressed network; that of the last call is kept.

    Every `stride`-th calibration sample is looked at; `has_moments`: for moments of inputs as well,
    which decompositions need. Raises InvalidOptions without such samples,
    and what `find_subject`, `load_state` and `calibrate` raise.
    """
    subject = find_subject(source, data)
    with _one_calibrates:  # cells beside this one wait for what it finds
        return _calibration(source, data, stride, has_moments, file_digest(subject.checkpoint))


@lru_cache(maxsize=1)
def _calibration(
    source: str, data: Path | None, stride: int, has_moments: bool, checkpoint_digest: str
) -> Calibrated:
    """The digest is there so that a checkpoint that has changed is looked at again."""
    subject = find_subject(source, data)
    if subject.calibration is None:
        raise InvalidOptions("calibration_stride", f"{subject.name} has no calibration samples")
    module = trained_module(subject)
    batches = KeptBatches(thinned(subject.calibration, stride, None)())
    only = None if has_moments else ()
    known = calibrate(module, batches, only=only, gradients=OutputGradients(module))
    return Calibrated(known, module, batches.batches)
