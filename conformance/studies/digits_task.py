"""The digits networks with their images, for experiments that train.

They train on the 500 images for calibration and are judged on the 598 test images, which they have
never seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from conformance.subjects import digits_networks
from conformance.trainings.resumable import moved
from conformance.trainings.sets import joined
from nnr_codec.experiments.subject import Subject
from nnr_codec.user.module import evaluating

DIGITS = {
    "digits_cnn": digits_networks.cnn,
    "digits_residual": digits_networks.residual,
    "digits_separable": digits_networks.separable,
}
BATCH = 500  # images that are judged at a time
Samples = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """A trained network, and its images (images, 1, 8, 8) with labels, to train on and to judge."""

    subject: Subject
    train: Samples
    test: Samples

    def batches(self, size: int) -> Iterator[Samples]:
        """Yield shuffled batches of training images, moved by up to a pixel, without end."""
        images, labels = self.train
        while True:
            for picked in torch.randperm(len(images)).split(size):
                yield moved(images[picked], 1, torch.default_generator), labels[picked]


def make_task(name: str) -> Task:
    """Return the task of one of `DIGITS`."""
    subject = DIGITS[name]()
    assert subject.calibration is not None
    return Task(subject, joined(subject.calibration()), joined(subject.batches()))


def outputs_of(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the module's outputs (images, classes), in evaluation mode."""
    with evaluating(module):
        return torch.cat([module(part) for part in images.split(BATCH)])


def top1(module: nn.Module, samples: Samples) -> float:
    """Return the share of `samples` that the module gets right, in percent."""
    images, labels = samples
    predictions = outputs_of(module, images).argmax(dim=1)
    return 100 * float((predictions == labels).double().mean())
