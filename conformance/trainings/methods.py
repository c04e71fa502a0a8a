"""Trainings that plans compare: each goes from a trained network to a bitstream.

All are the steps of Adam on the training images, moved and mirrored, at a rate that falls to 0 as a
cosine; the network that there was first is the teacher. All weights are coded in the end, those of
factors in the forms that they have.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

sys.path.append(str(Path(__file__).parents[2]))

from conformance.trainings.resumable import Schedule, train_resumably
from conformance.trainings.sets import training_set
from nnr_codec import encode
from nnr_codec.errors import InvalidOptions, NnrWarning
from nnr_codec.experiments.training_run import TrainingRun
from nnr_codec.layers import dense_state, factored_weights, factorize
from nnr_codec.options import DecompositionOptions, EncodeOptions
from nnr_codec.training import (
    LowRankProjection,
    RateTraining,
    decompose_gradually,
    fold_batch_norm,
    ranks_at_ratio,
    reestimate_batch_norm,
    relative_qps,
)
from nnr_codec.user.module import weight_layers

CALIBRATION_IMAGES = 2000
DISTILLED = 0.9
"""Of the loss, what is the divergence from the teacher; the rest is that from the labels."""


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
        steps: of Adam, of a batch each; of the digits networks `digits_steps`.
        learning_rate: the first.
    """

    steps: int
    digits_steps: int = 300
    learning_rate: float = 1e-3

    def __call__(
        self,
        run: TrainingRun,
        module: nn.Module,
        *,
        wrap: Callable[[Any], Any] = lambda loss: loss,
        after_step: Callable[[int], object] = lambda steps: None,
    ) -> None:
        """Train `module`; `wrap` makes another loss of the loss."""
        known = training_set(run)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        schedule = Schedule(
            self.digits_steps if known.is_digits else self.steps,
            self.learning_rate,
            batch=known.batch,
            seed=run.seed,
            shift=known.shift,
            mirrors=known.mirrors,
        )
        train_resumably(
            module.to(device),
            known.images,
            known.labels,
            schedule,
            run.state,
            prepare=known.prepare,
            loss=wrap(distilled),
            teacher=run.module.to(device),
            make_optimizer=_adam,
            after_step=after_step,
        )
        module.cpu()


def distilled(outputs: torch.Tensor, targets: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the loss of outputs against labels, and against a teacher's outputs."""
    labels, expected = targets
    divergence = functional.kl_div(
        outputs.log_softmax(1), expected.log_softmax(1), reduction="batchmean", log_target=True
    )
    return DISTILLED * divergence + (1 - DISTILLED) * functional.cross_entropy(outputs, labels)


def _adam(parameters: Iterable[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, schedule.learning_rate)


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


def tuned_at_ranks(
    run: TrainingRun, *, form: str, ratio: float, qp: int = -38, **training: Any
) -> bytes:
    """Decompose to the ranks that `projected` has, and train the factors; arguments are its."""
    module = copy.deepcopy(run.module)
    factors = _projection(module, form, ratio, (1, 1)).project()
    reestimate_batch_norm(factorize(module, factors), _samples(run))
    Training(**training)(run, module)
    return stream_of(module, EncodeOptions(qp=qp))


def projected(
    run: TrainingRun,
    *,
    form: str,
    ratio: float,
    tiles: Sequence[int] = (1, 1),
    every: int = 200,
    qp: int = -38,
    **training: Any,
) -> bytes:
    """Train in full, the kernels being replaced by their low-rank reconstructions now and then.

    Args:
        run: what to train.
        form, ratio, tiles: as of `ranks_at_ratio`; the classifier stays dense, since ten classes
            need rank ten. Kernels in tiles are coded dense.
        every: steps between replacements.
        qp: of the weights in the end.
        training: fields of `Training`.
    """
    module = copy.deepcopy(run.module)
    projection = _projection(module, form, ratio, tiles)

    def project(steps: int) -> None:
        if steps % every == 0:  # also of a run that was interrupted
            projection.project()

    Training(**training)(run, module, after_step=project)
    factors = projection.project()
    reestimate_batch_norm(module, _samples(run))
    return stream_of(factorize(module, factors), EncodeOptions(qp=qp))


def _projection(
    module: nn.Module, form: str, ratio: float, tiles: Sequence[int]
) -> LowRankProjection:
    *names, _ = weight_layers(module).values()
    rows, columns = tiles
    ranks = ranks_at_ratio(module, ratio, form=form, tiles=(rows, columns), only=names)
    return LowRankProjection(module, ranks, tiles=(rows, columns))


def _samples(run: TrainingRun) -> list[torch.Tensor]:
    """Return unaltered training images, for moments and the statistics of batch norm."""
    return training_set(run).samples(CALIBRATION_IMAGES)


def for_rate(
    run: TrainingRun,
    *,
    fraction: float,
    strength: float,
    method: str = "none",
    ratio: float = 1.0,
    rule: str = "water-filling",
    **training: Any,
) -> bytes:
    """Train for rate, dense or in factors.

    Args:
        run: what to train.
        fraction: of each weight's root mean square, that its step is at most.
        strength: loss that a bit a weight counts as.
        method, ratio, rule: as of `decomposed`.
        training: fields of `Training`.
    """
    module = decomposed(run, method, ratio, rule)
    rate = RateTraining(module, qp=relative_qps(module, fraction), strength=strength)
    Training(**training)(run, module, wrap=rate.loss)
    rate.finish()
    fold_batch_norm(module)
    return stream_of(module, rate.options(factored=True))


def decomposed(
    run: TrainingRun, method: str, ratio: float, rule: str, scheme: str = "right"
) -> nn.Module:
    """Return the network with layers in factors, fitted to the moments of their inputs, and batch
    norm re-estimated.

    Args:
        run: what to train.
        method: as of `DecompositionOptions`, or "none".
        ratio: parameters of the whole model before over after, at least.
        rule: "water-filling": ranks by the layers' errors; "common": the same fraction of every
            layer but the first and the classifier, of the methods "lr" and "ce1".
        scheme: of the method "joint".
    """
    module = copy.deepcopy(run.module)
    if method == "none":
        return module
    samples = _samples(run)
    weights = list(weight_layers(module).values())
    options = _options(method, ratio, rule, scheme, weights)
    adapt = partial(reestimate_batch_norm, batches=samples)
    return decompose_gradually(module, options, adapt, steps=1, batches=samples)


def _options(
    method: str, ratio: float, rule: str, scheme: str, weights: Sequence[str]
) -> EncodeOptions:
    overrides: list[tuple[str, dict[str, Any]]] = []
    if rule == "common" and method not in ("lr", "ce1"):
        raise InvalidOptions("rule", f"'common' is for 'lr' and 'ce1', not for {method!r}")
    if rule == "common":
        overrides = [("*", {"decompose": "lr"})] if method == "lr" else []
        overrides += [(name, {"decompose": "none"}) for name in (weights[0], weights[-1])]
        method = "ce1"
    elif rule != "water-filling":
        raise InvalidOptions("rule", f"{rule!r} is neither 'water-filling' nor 'common'")
    decomposition = DecompositionOptions(
        method=method, compression_ratio=ratio, joint_scheme=scheme
    )
    return EncodeOptions(decomposition=decomposition, overrides=tuple(overrides))


def stream_of(module: nn.Module, options: EncodeOptions) -> bytes:
    """Return the bitstream, with factors as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NnrWarning)  # what is lost was trained for
        result = encode(
            dense_state(module),
            options=options,
            factorizations=factored_weights(module),
        )
    return result.data or b""
