"""Training for low rank against ordinary fine-tuning, at equal ranks, steps and learning rates.

    python -m conformance.projection_training --data FOLDER -o RUNS.jsonl [--subjects …] [--seeds …]
    python -m conformance.projection_training --table -o RUNS.jsonl

Every run starts from the trained network and ends with factors of the same ranks (the first layer
and the classifier stay dense):

* `none`: the network is decomposed, not trained;
* `fine-tuning`: it is decomposed, and the factors are trained;
* `projection`: it is trained in full, its kernels being replaced by their low-rank reconstructions
  every so often and at the end (`nnr_codec.decompose.training`);
* `dense`: it is trained and never decomposed: what this training alone does to it. Ratio 1.

All but `dense` end with the re-estimation of batch norm on the training images. Each run appends a
line of JSON to RUNS.jsonl; those that are there already are not repeated. Runs are seeded; one
thread.

The digits networks train on the 500 images for calibration and are judged on the 598 test images,
which they have never seen. ResNet-8 (`resnet8_cifar10`) trains on two thirds of the lossless images
in FOLDER/datasets/cifar10_train_lossless.npz and is judged on the last third, another one for each
seed. The trained network has seen these as well, so that `held out` tells methods apart, not how
good a network is; `test` is FOLDER's test set, whose images suffered from JPEG.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from conformance.models import digits_subjects
from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.decompose.training import (
    LowRankProjection,
    fine_tune,
    ranks_at_ratio,
    reestimate_batch_norm,
)
from nnr_codec.experiments.evaluation import load_tensors
from nnr_codec.experiments.subject import Subject, find_subject
from nnr_codec.factorization.forms import FactoredWeight
from nnr_codec.report import table
from nnr_codec.user_module import evaluating, weight_layers

DIGITS = {
    "digits_cnn": digits_subjects.cnn,
    "digits_residual": digits_subjects.residual,
    "digits_separable": digits_subjects.separable,
}
RESNET8 = "resnet8_cifar10"
METHODS = ("none", "fine-tuning", "projection", "dense")
FOLDS = 3
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
SETTINGS = ("subject", "method", "seed", "ratio", "form", "every", "steps", "batch", "smoothing",
            "learning_rate")  # fmt: skip
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
                yield self._altered(images[picked]), labels[picked]

    def _altered(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[2:]
        padded = functional.pad(images, (self.shift,) * 4)
        moves = torch.randint(0, 2 * self.shift + 1, (len(images), 2)).tolist()
        mirrored = torch.rand(len(images)) < (0.5 if self.flip else 0.0)
        moved = torch.stack(
            [image[:, y : y + height, x : x + width]
             for image, (y, x) in zip(padded, moves, strict=True)]
        )  # fmt: skip
        return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)


def make_task(name: str, data: Path | None, seed: int, learning_rate: float | None) -> Task:
    """Return the task of a subject; the seed chooses what is held out."""
    if name in DIGITS:
        subject = DIGITS[name](None)
        return Task(
            subject, _joined(subject.calibration), None, _joined(subject.batches),
            shift=1, flip=False, learning_rate=learning_rate or 0.02,
        )  # fmt: skip
    if name != RESNET8 or data is None:
        raise SystemExit(f"{name}: not known, or it needs --data")
    subject = find_subject(name, data)
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


def _joined(batches: Callable[[], Any] | None) -> Samples:
    pairs = list(batches() if batches is not None else [])
    labels = np.concatenate([labels for _, labels in pairs]).astype(np.int64)
    return torch.cat([images for images, _ in pairs]), torch.from_numpy(labels)


class Product(nn.Module):
    """A kernel as the product of its factors, which are what is trained.

    Gradients are those of the layers that execute the factors one after the other.
    """

    def __init__(self, factored: FactoredWeight) -> None:
        super().__init__()
        self.form, self.shape = factored.form, factored.shape
        self.start = [torch.from_numpy(np.array(f, np.float32)) for f in factored.factors]

    def right_inverse(self, weight: torch.Tensor) -> list[torch.Tensor]:
        """Return the factors to start with; `weight` is what they were made of."""
        return self.start

    def forward(self, *factors: torch.Tensor) -> torch.Tensor:
        """Return the kernel."""
        if self.form == "lr":
            return (factors[0] @ factors[1]).reshape(self.shape)
        core, outputs, inputs = factors
        return torch.einsum("ab...,ta,sb->ts...", core, outputs, inputs)


def run(task: Task, method: str, ratio: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one network; return what is reported of it."""
    module = task.subject.module()
    with open_checkpoint(task.subject.checkpoint) as model:
        load_tensors(module, dict(model.arrays()))
    dense = sum(parameter.numel() for parameter in module.parameters())
    ranks = {} if method == "dense" else _ranks(module, ratio, arguments.form)
    projection = LowRankProjection(module, ranks, every=arguments.every)
    if method == "projection":
        _train(module, task, arguments, projection.step)
    factored = projection.project()
    saved = sum(module.get_parameter(name).numel() - w.parameter_count
                for name, w in factored.items())  # fmt: skip
    if method == "fine-tuning":
        for name, weight in factored.items():
            layer = module.get_submodule(name.rpartition(".")[0])
            parametrize.register_parametrization(layer, "weight", Product(weight))
    if method in ("fine-tuning", "dense"):
        _train(module, task, arguments)
    if method != "dense":
        reestimate_batch_norm(module, task.train[0].split(500))
    held_out = None if task.held_out is None else top1(module, task.held_out)
    return {
        "parameters": dense - saved,
        "of": dense,
        "held_out": held_out,
        "test": top1(module, task.test),
    }


def _ranks(module: nn.Module, ratio: float, form: Any) -> dict[str, Any]:
    """Return the ranks of all layers but the first and the classifier: ten classes need ten."""
    *names, _ = weight_layers(module).values()
    return ranks_at_ratio(module, ratio, form=form, only=names)


def _train(
    module: nn.Module,
    task: Task,
    arguments: argparse.Namespace,
    also: Callable[[], object] = lambda: None,
) -> None:
    """Train all parameters that require it, the learning rate falling to 0."""
    optimizer = torch.optim.SGD(
        module.parameters(), task.learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)

    def after_step() -> None:
        schedule.step()
        also()

    loss = partial(functional.cross_entropy, label_smoothing=arguments.smoothing)
    batches = task.batches(arguments.batch)
    fine_tune(module, optimizer, batches, loss, steps=arguments.steps, after_step=after_step)


def top1(module: nn.Module, samples: Samples) -> float:
    """Return the share of `samples` that the module gets right, in percent."""
    images, labels = samples
    with evaluating(module):
        found = torch.cat([module(part).argmax(dim=1) for part in images.split(500)])
    return 100 * float((found == labels).double().mean())


def measure(arguments: argparse.Namespace) -> None:
    """Do all runs that are not in the output yet."""
    done = {_key(line) for line in _lines(arguments.output)}
    torch.set_num_threads(1)
    for seed, name, method, ratio in product(
        arguments.seeds, arguments.subjects, arguments.methods, arguments.ratios
    ):
        settings = _settings(arguments, name, method, ratio, seed)
        if _key(settings) in done:
            continue
        done.add(_key(settings))
        task = make_task(name, arguments.data, seed, arguments.learning_rate)
        torch.manual_seed(seed)
        start = time.perf_counter()
        result = run(task, method, ratio, arguments)
        seconds = round(time.perf_counter() - start, 1)
        line = json.dumps({**settings, **result, "seconds": seconds, "torch": torch.__version__})
        with arguments.output.open("a") as file:
            file.write(line + "\n")
        print(line, file=sys.stderr)


def _settings(
    arguments: argparse.Namespace, name: str, method: str, ratio: float, seed: int
) -> dict[str, Any]:
    """Return what tells runs apart; settings that a method does not heed are None."""
    trains = method != "none"
    return {
        "subject": name,
        "method": method,
        "seed": seed,
        "ratio": ratio if method != "dense" else 1.0,
        "form": arguments.form if method != "dense" else None,
        "every": arguments.every if method == "projection" else None,
        "steps": arguments.steps if trains else 0,
        "batch": arguments.batch if trains else None,
        "smoothing": arguments.smoothing if trains else None,
        "learning_rate": arguments.learning_rate if trains else None,
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in SETTINGS)


def summary(path: Path) -> str:
    """Return a table of what is in the output: means over the seeds, and the range of the test."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in _lines(path):
        share = line["of"] / line["parameters"]
        order = METHODS.index(line["method"])
        key = (line["subject"], line["form"] or "", line["ratio"], share, order)
        groups[(*key, line["steps"], line["every"] or 0)].append(line)
    rows = []
    for key in sorted(groups):
        subject, form, ratio, share, order, steps, every = key
        lines = groups[key]
        test = [line["test"] for line in lines]
        held_out = [line["held_out"] for line in lines if line["held_out"] is not None]
        rows.append([
            subject, form, f"{ratio:g}", f"{share:.2f}", METHODS[order],
            str(steps), str(every or ""), str(len(lines)),
            f"{statistics.mean(held_out):.2f}" if held_out else "",
            f"{statistics.mean(test):.2f}", f"{min(test):.2f}-{max(test):.2f}",
        ])  # fmt: skip
    columns = ("subject", "form", "per layer", "in all", "method", "steps", "every", "seeds",
               "held out", "test", "range")  # fmt: skip
    return table(columns, rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="a line for each run")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--data", type=Path, help="folder of models and data, for ResNet-8")
    parser.add_argument("--subjects", nargs="+", default=[*DIGITS, RESNET8])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--ratios", type=float, nargs="+", default=[2.0, 3.0, 5.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--form", choices=("tucker2", "lr"), default="tucker2")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=200, help="steps between replacements")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--smoothing", type=float, default=0.05, help="of labels")
    parser.add_argument("--learning-rate", type=float, help="the subject's own by default")
    arguments = parser.parse_args()
    if arguments.table:
        print(summary(arguments.output))
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
