"""What the networks under test are trained on in plans: images, and how these are altered."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1] / "subjects"))

import cifar_references
import digits_networks

from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.datasets.images import normalized
from nnr_codec.experiments.training_run import TrainingRun


@dataclass(frozen=True)
class TrainingSet:
    """Images to train on.

    Attributes:
        images: (images, channels, height, width), uint8 or float32.
        labels: int64 (images,).
        prepare: makes of float32 images what the network takes.
        shift: pixels by which they are moved at most.
        mirrors: whether every other one is mirrored.
        batch: of a step.
        is_digits: whether they are the digits.
    """

    images: torch.Tensor
    labels: torch.Tensor
    prepare: Callable[[torch.Tensor], torch.Tensor]
    shift: int
    mirrors: bool
    batch: int
    is_digits: bool = False

    def samples(self, count: int) -> list[torch.Tensor]:
        """Return evenly spaced images as batches of inputs, unaltered."""
        stride = max(1, len(self.images) // count)
        return list(self.prepare(self.images[::stride].float()).split(200))


def training_set(run: TrainingRun) -> TrainingSet:
    """Return what the subject of a plan is trained on.

    That are the 500 images of the digits networks that calibrate, and the 50 000 JPEG training
    images of CIFAR-10.

    Raises:
        InvalidOptions: it is neither.
    """
    if run.subject.checkpoint.parent == digits_networks.MODELS:
        return _digits()
    file = cifar_references.TRAIN
    if run.data is None or not (run.data / file).is_file():
        raise InvalidOptions("data", f"{run.subject.name}: no folder with {file}")
    pixels, labels = cifar_references.training_images(run.data / file)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return TrainingSet(images, torch.from_numpy(labels), normalized, 4, True, 128)


def _digits() -> TrainingSet:
    images, labels = joined(digits_networks.batches("digits_calibration.npz"))
    return TrainingSet(images, labels, lambda pixels: pixels, 1, False, 64, True)


def joined(batches: Iterable[tuple[torch.Tensor, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images of batches, and all labels, int64."""
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.from_numpy(np.concatenate(labels).astype(np.int64))
