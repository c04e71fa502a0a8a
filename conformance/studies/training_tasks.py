"""What experiments that train share: trained networks with images, training, and a log of runs.

The digits networks train on the 500 images for calibration and are judged on the 598 test images,
which they have never seen. ResNet-8 (`resnet8_cifar10`) trains on two thirds of the lossless images
in FOLDER/datasets/cifar10_train_lossless.npz and is judged on the last third, another one for each
seed. The trained network has seen these as well, so that `held out` tells methods apart, not how
good a network is; `test` is FOLDER's test set, whose images suffered from JPEG.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from conformance.subjects import digits_networks, source_of
from nnr_codec.experiments.subject import Subject
from nnr_codec.experiments.subject_source import find_subject
from nnr_codec.training import fine_tune
from nnr_codec.user.module import evaluating

DIGITS = {
    "digits_cnn": digits_networks.cnn,
    "digits_residual": digits_networks.residual,
    "digits_separable": digits_networks.separable,
}
RESNET8 = "resnet8_cifar10"
FOLDS = 3
VALIDATION_FOLDS = 5
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
BATCH = 500  # images that are judged at a time
Samples = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """A trained network, and its images (images, channels, height, width) with labels.

    Attributes:
        held_out, test: images to judge by; `held_out` are some of those the network was first
            trained on, and None for the digits.
        shift: pixels by which training images are moved at most, zeros coming in.
        flip: whether they are mirrored as well.
        learning_rate: the first; it falls to 0 as a cosine.
    """

    subject: Subject
    train: Samples
    held_out: Samples | None
    test: Samples
    shift: int
    flip: bool
    learning_rate: float

    def batches(self, size: int) -> Iterator[Samples]:
        """Yield shuffled and altered batches of training images, without end."""
        images, labels = self.train
        while True:
            for picked in torch.randperm(len(images)).split(size):
                moved = shifted(images[picked], self.shift)
                mirrored = torch.rand(len(moved)) < (0.5 if self.flip else 0.0)
                altered = torch.where(mirrored[:, None, None, None], moved.flip(3), moved)
                yield altered, labels[picked]

    def for_validation(self) -> Task:
        """Return the same with training images alone: one of `VALIDATION_FOLDS` is held out."""
        images, labels = self.train
        mask = torch.arange(len(images)) % VALIDATION_FOLDS == 0
        held_out = images[mask], labels[mask]
        return replace(self, train=(images[~mask], labels[~mask]), held_out=held_out, test=held_out)


def shifted(images: torch.Tensor, most: int) -> torch.Tensor:
    """Move each image (channels, height, width) by up to `most` pixels, zeros coming in."""
    height, width = images.shape[2:]
    padded = functional.pad(images, (most,) * 4)
    moves = torch.randint(0, 2 * most + 1, (len(images), 2)).tolist()
    return torch.stack(
        [image[:, y : y + height, x : x + width]
         for image, (y, x) in zip(padded, moves, strict=True)]
    )  # fmt: skip


def make_task(name: str, data: Path | None, seed: int, learning_rate: float | None) -> Task:
    """Return the task of a subject; the seed chooses what is held out."""
    if name in DIGITS:
        subject = DIGITS[name]()
        return Task(
            subject, _joined(subject.calibration), None, _joined(subject.batches),
            shift=1, flip=False, learning_rate=learning_rate or 0.02,
        )  # fmt: skip
    if name != RESNET8 or data is None:
        raise SystemExit(f"{name}: not known, or it needs --data")
    subject = find_subject(source_of(f"cifar_resnets.py:{name}"), data)
    with np.load(data / "datasets" / "cifar10_train_lossless.npz") as archive:
        pixels, labels = archive["images"], archive["labels"]
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    targets = torch.from_numpy(labels.astype(np.int64))
    # One division for all seeds, so that three seeds hold every image out once.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(len(images)) % FOLDS == seed % FOLDS
    train, held_out = order[~mask], order[mask]
    return Task(
        subject, (images[train], targets[train]), (images[held_out], targets[held_out]),
        _joined(subject.batches), shift=4, flip=True, learning_rate=learning_rate or 0.01,
    )  # fmt: skip


def _joined(batches: Callable[[], Any]) -> Samples:
    images, labels = zip(*batches(), strict=True)
    return torch.cat(images), torch.from_numpy(np.concatenate(labels).astype(np.int64))


def _sgd(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters, learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )


def train(
    module: nn.Module,
    task: Task,
    *,
    steps: int,
    batch: int,
    smoothing: float,
    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] = _sgd,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    """Train all parameters that require it by `steps` batches of `batch` images.

    The learning rate falls from the task's to 0; `smoothing` is that of the labels.

    Raises:
        InvalidModel: the loss is not finite.
    """
    used = optimizer(module.parameters(), task.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(used, steps)

    def after() -> None:
        schedule.step()
        after_step()

    loss = partial(functional.cross_entropy, label_smoothing=smoothing)
    fine_tune(module, used, task.batches(batch), loss, steps=steps, after_step=after)


def outputs_of(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the module's outputs (images, classes), in evaluation mode."""
    with evaluating(module):
        return torch.cat([module(part) for part in images.split(BATCH)])


def top1(module: nn.Module, samples: Samples) -> float:
    """Return the share of `samples` that the module gets right, in percent."""
    images, labels = samples
    predictions = outputs_of(module, images).argmax(dim=1)
    return 100 * float((predictions == labels).double().mean())


@dataclass(frozen=True)
class RunLog:
    """Runs of an experiment, a line of JSON each: those that are there are not repeated."""

    path: Path

    def lines(self) -> list[dict[str, Any]]:
        """Return the runs: settings and results."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def groups(
        self, key: Callable[[dict[str, Any]], tuple[Any, ...]]
    ) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
        """Return the runs with equal keys together, in the order of the keys."""
        lines = sorted(self.lines(), key=key)
        return [(common, list(group)) for common, group in groupby(lines, key)]

    def __contains__(self, settings: Mapping[str, Any]) -> bool:
        return any(settings.items() <= line.items() for line in self.lines())

    def run(self, settings: Mapping[str, Any], work: Callable[[], Mapping[str, Any]]) -> None:
        """Do a run, seeded by `settings["seed"]`; append its line with the results of `work`."""
        torch.manual_seed(settings["seed"])
        start = time.perf_counter()
        result = work()
        seconds = round(time.perf_counter() - start, 1)
        line = json.dumps({**settings, **result, "seconds": seconds, "torch": torch.__version__})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, file=sys.stderr)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a command line with what all experiments that train have in common."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="a line for each run")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--data", type=Path, help="folder of models and data, for ResNet-8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--smoothing", type=float, default=0.05, help="of labels")
    return parser


def run_command(
    arguments: argparse.Namespace,
    measure: Callable[[argparse.Namespace, RunLog], object],
    summary: Callable[[RunLog], str],
) -> None:
    """Do the runs that are not in the log yet, on one thread, or print what is there."""
    torch.set_num_threads(1)
    log = RunLog(arguments.output)
    if arguments.table:
        print(summary(log))
    else:
        measure(arguments, log)
