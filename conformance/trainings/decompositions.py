"""Networks in factors that are to be trained, and what they are fitted to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from conformance.trainings.sets import training_set
from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.training_run import TrainingRun
from nnr_codec.options import DecompositionOptions, EncodeOptions
from nnr_codec.training import (
    LowRankProjection,
    decompose_gradually,
    ranks_at_ratio,
    reestimate_batch_norm,
)
from nnr_codec.user.module import weight_layers

CALIBRATION_IMAGES = 2000


def decomposed(
    run: TrainingRun,
    method: str,
    ratio: float,
    rule: str,
    scheme: str = "right",
    *,
    train: Callable[[nn.Module], object] = lambda module: None,
    parts: int = 1,
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
        train: called with the network after each part.
        parts: that it is decomposed in.
    """
    module = copy.deepcopy(run.module)
    if method == "none":
        return module
    samples = calibration_images(run)
    options = options_of(method, ratio, rule, scheme, list(weight_layers(module).values()))

    def adapt(module: nn.Module) -> None:
        reestimate_batch_norm(module, samples)
        train(module)

    return decompose_gradually(module, options, adapt, steps=parts, batches=samples)


def options_of(
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


def projection_to(
    module: nn.Module, form: str, ratio: float, tiles: Sequence[int]
) -> LowRankProjection:
    """Return what projects the kernels of a network, and how it does, as `projected` says."""
    *names, _ = weight_layers(module).values()
    rows, columns = tiles
    ranks = ranks_at_ratio(module, ratio, form=form, tiles=(rows, columns), only=names)
    return LowRankProjection(module, ranks, tiles=(rows, columns))


def calibration_images(run: TrainingRun) -> list[torch.Tensor]:
    """Return unaltered training images, for moments and the statistics of batch norm."""
    return training_set(run).samples(CALIBRATION_IMAGES)
