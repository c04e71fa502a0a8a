"""Trainings that plans compare: each goes from a trained network to a bitstream.

All are the steps of Adam on the training images, moved and mirrored, at a rate that falls to 0 as a
cosine; the network that there was first is the teacher, if there is one. All weights are coded in
the end, those of factors in the forms that they have.
"""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2]))

from conformance.trainings.decompositions import (
    calibration_images,
    decomposed,
    projection_to,
)
from conformance.trainings.training import DEVICE, Training, last_trained
from nnr_codec import encode
from nnr_codec.errors import InvalidOptions, NnrWarning
from nnr_codec.experiments.fingerprints import file_digest
from nnr_codec.experiments.training_run import TrainingRun
from nnr_codec.layers import dense_state, factored_weights, factorize, load_into
from nnr_codec.model import Model
from nnr_codec.options import EncodeOptions
from nnr_codec.training import (
    RankPruning,
    RateTraining,
    fold_batch_norm,
    reestimate_batch_norm,
    relative_qps,
)
from nnr_codec.user.module import load_state

_SCRIPTS = [file_digest(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
"""What trains: a network that other scripts have trained is another one."""


def fine_tuned(
    run: TrainingRun,
    *,
    method: str,
    ratio: float = 1.0,
    rule: str = "water-filling",
    scheme: str = "right",
    qp: int = -38,
    **training: Any,
) -> bytes:
    """Decompose, and train the factors.

    Args:
        run: what to train.
        method, ratio, rule, scheme: as of `decomposed`.
        qp: of the weights in the end.
        training: fields of `Training`.
    """
    module = decomposed(run, method, ratio, rule, scheme)
    Training(**training)(run, module)
    return stream_of(module, EncodeOptions(qp=qp))


def tuned_in_parts(
    run: TrainingRun,
    *,
    method: str,
    ratio: float,
    rule: str = "water-filling",
    parts: int = 3,
    qp: int = -38,
    **training: Any,
) -> bytes:
    """Decompose a little, train, decompose a little more, and so on.

    If it is interrupted, it begins anew.

    Args:
        run: what to train.
        method, ratio, rule: as of `decomposed`.
        parts: of the training, which has as many steps in all.
        qp: of the weights in the end.
        training: fields of `Training`.
    """
    if method == "none":
        raise InvalidOptions("method", "'none' has no parts to be trained after")
    train = Training(**training).in_parts(replace(run, state=None), parts)
    module = decomposed(run, method, ratio, rule, train=train, parts=parts)
    return stream_of(module, EncodeOptions(qp=qp))


def pruned(
    run: TrainingRun,
    *,
    method: str,
    ratio: float,
    rule: str = "water-filling",
    qp: int = -38,
    **training: Any,
) -> bytes:
    """Decompose to half of the ratio, or to its root where that is more, and prune ranks in the
    first quarter of the training, to the parameters that `decomposed` leaves.

    If it is interrupted, it begins anew.

    Args:
        run: what to train.
        method, ratio, rule: as of `decomposed`.
        qp: of the weights in the end.
        training: fields of `Training`.
    """
    parameters = _parameters(decomposed(run, method, ratio, rule))
    module = decomposed(run, method, max(ratio / 2, math.sqrt(ratio)), rule)
    train = Training(**training)
    steps = max(1, train.steps_of(run) // 4)
    samples = [batch.to(DEVICE) for batch in calibration_images(run)]
    pruning = RankPruning(module, samples, parameters=parameters, steps=steps)
    train(replace(run, state=None), module, after_step=lambda made: pruning.step())
    pruning.finish()
    reestimate_batch_norm(module, calibration_images(run))
    return stream_of(module, EncodeOptions(qp=qp))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tuned_at_ranks(
    run: TrainingRun, *, form: str, ratio: float, qp: int = -38, **training: Any
) -> bytes:
    """Decompose to the ranks that `projected` has, and train the factors; arguments are its."""
    module = copy.deepcopy(run.module)
    factors = projection_to(module, form, ratio, (1, 1)).project()
    reestimate_batch_norm(factorize(module, factors), calibration_images(run))
    Training(**training)(run, module)
    return stream_of(module, EncodeOptions(qp=qp))


def projected(
    run: TrainingRun,
    *,
    form: str,
    ratio: float,
    tiles: Sequence[int] = (1, 1),
    projections: int = 10,
    qp: int = -38,
    **training: Any,
) -> bytes:
    """Train in full, the kernels being replaced by their low-rank reconstructions now and then.

    Args:
        run: what to train.
        form, ratio, tiles: as of `ranks_at_ratio`; the classifier stays dense, since ten classes
            need rank ten. Kernels in tiles are coded dense.
        projections: how many there are.
        qp: of the weights in the end.
        training: fields of `Training`.
    """
    module = copy.deepcopy(run.module)
    projection, train = projection_to(module, form, ratio, tiles), Training(**training)
    every = max(1, train.steps_of(run) // projections)

    def project(made: int) -> None:
        if made % every == 0:  # also of a run that was interrupted
            projection.project()

    train(run, module, after_step=project)
    factors = projection.project()
    reestimate_batch_norm(module, calibration_images(run))
    return stream_of(factorize(module, factors), EncodeOptions(qp=qp))


def for_rate(run: TrainingRun, **options: Any) -> bytes:
    """Train for rate, dense or in factors; the stream has the integers that were trained.

    Args:
        run: what to train.
        options: of `_trained_for_rate`.
    """
    module, rate = _trained_for_rate(run, **options)
    fold_batch_norm(module)
    return stream_of(module, rate.options(factored=True))


def for_calibrated_rate(run: TrainingRun, *, qp: int, **options: Any) -> bytes:
    """Train for rate without rounding, and code with calibration.

    The network that was trained last is kept: cells that differ by qp alone, one after the other in
    one process, train it once.

    Args:
        run: what to train.
        qp: that it is coded with.
        options: of `_trained_for_rate`.
    """
    key = _key("unrounded", run, options)
    module = last_trained(key, lambda: _trained_for_rate(run, unrounded=True, **options)[0])
    return _calibrated(run, module, qp)


def for_rate_then_calibrated(run: TrainingRun, *, qp: int, **options: Any) -> bytes:
    """Train for rate, on integers of fine steps, and code what the stream decodes to once more,
    with calibration and coarser steps.

    The stream that was trained last is kept, as by `for_calibrated_rate`.

    Args:
        run: what to train.
        qp: that it is coded with in the end.
        options: of `_trained_for_rate`.
    """
    stream = last_trained(_key("integers", run, options), lambda: for_rate(run, **options))
    module = copy.deepcopy(run.module)
    load_into(module, stream)
    return _calibrated(run, module, qp)


def _key(way: str, run: TrainingRun, options: dict[str, Any]) -> str:
    trained = (run.subject.checkpoint, run.data, run.seed, sorted(options.items()))
    return repr((way, _SCRIPTS, *trained))


def _calibrated(run: TrainingRun, module: nn.Module, qp: int) -> bytes:
    """Return the stream of a network, dense or in factors, coded with calibration."""
    dense = copy.deepcopy(run.module)
    load_state(dense, Model.from_arrays(dense_state(module)), strict=True)
    return _stream(dense, EncodeOptions(qp=qp), factored_weights(module), calibration_images(run))


def _trained_for_rate(
    run: TrainingRun,
    *,
    fraction: float,
    strength: float,
    method: str = "none",
    ratio: float = 1.0,
    rule: str = "water-filling",
    unrounded: bool = False,
    **training: Any,
) -> tuple[nn.Module, RateTraining]:
    """Return a network that was trained for rate, and what trained it.

    Args:
        run: what to train.
        fraction: of each weight's root mean square, that its step is at most.
        strength: loss that a bit a weight counts as.
        method, ratio, rule: as of `decomposed`.
        unrounded: as of `RateTraining`.
        training: fields of `Training`.
    """
    module = decomposed(run, method, ratio, rule)
    qps = relative_qps(module, fraction)
    rate = RateTraining(module, qp=qps, strength=strength, unrounded=unrounded)
    Training(**training)(run, module, wrap=rate.loss)
    rate.finish()
    return module, rate


def stream_of(module: nn.Module, options: EncodeOptions) -> bytes:
    """Return the bitstream, with factors as they are."""
    return _stream(dense_state(module), options, factored_weights(module))


def _stream(
    model: Any,
    options: EncodeOptions,
    factorizations: Any,
    calibration: Sequence[torch.Tensor] | None = None,
) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NnrWarning)  # what is lost was trained for
        result = encode(
            model, options=options, factorizations=factorizations, calibration=calibration
        )
    return result.data or b""
