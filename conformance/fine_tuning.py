"""Low rank (LR) against selective low rank and CP, before and after a short fine-tuning.

    python -m conformance.fine_tuning --data FOLDER -o RUNS.jsonl [--subjects …] [--seeds …]
    python -m conformance.fine_tuning --table -o RUNS.jsonl

Every run decomposes the trained network, whose first layer stays dense, to a ratio of parameters of
the whole model, puts factorized layers into it, and trains these: their factors are the parameters.

* Schemes: `LR`, and `LR + CP`: LR for linear layers and 1x1 convolutions, CP for other ones.
* Rules: `common fraction`: every layer keeps the same, and the classifier all (with `LR + CP` this
  is CE-1); `water-filling`: ranks by the layers' errors.

All are fitted to the moments of the layers' inputs on training images. Batch norm is estimated anew
after the training, and for comparison without any. Accuracy and the divergence from the
uncompressed network are judged on images that the training has not seen; for which these are, see
`conformance/studies/training_tasks.py`. ResNet-8 had seen these when it was first trained, so that
training on others loses what is known of them: at small ratios `batch_norm` may be above `tuned`. A
ratio that is out of reach makes a run without figures.

The optimizer is Adam. Each scheme has on each network the learning rate with the least divergence
of 0.0001, 0.0003, 0.001 and 0.003, found at 2x for ratios up to 3 and at 8x for higher ones
(digits_residual, which cannot have 8x: at 3x), by the common fraction. Training images alone
decided (`--validate`, seed 0).

digits_separable is not among the subjects by default: it has no convolutions that get CP, so both
schemes are the same, and its learning rates are those of digits_residual.

Each run appends a line of JSON to RUNS.jsonl; those that are there already are not repeated. Runs
are seeded; one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.studies.fine_tuning_table import STATES, summary
from conformance.studies.training_tasks import (
    DIGITS,
    FOLDS,
    RESNET8,
    RunLog,
    Task,
    argument_parser,
    make_task,
    outputs_of,
    run_command,
    train,
)
from nnr_codec.calibration.calibrate import calibrate
from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.decompose import Decomposition, decompose_model
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.experiments.evaluation import trained_module
from nnr_codec.experiments.measures.metrics import classification
from nnr_codec.layers import factorize
from nnr_codec.model import Array, Model
from nnr_codec.options import DecompositionOptions, EncodeOptions
from nnr_codec.options.decomposition import Method
from nnr_codec.training import reestimate_batch_norm
from nnr_codec.user.module import weight_layers

LR, LR_CP = SCHEMES = ("LR", "LR + CP")
COMMON, WATER_FILLING = RULES = ("common fraction", "water-filling")
SUBJECTS = ("digits_cnn", "digits_residual", RESNET8)
RATIOS = (1.5, 2.0, 3.0, 5.0, 8.0, 12.0)
MILD = 3.0  # ratios up to this have the first of two learning rates, others the second
LEARNING_RATES = {
    "digits_cnn": {LR: (3e-4, 3e-3), LR_CP: (1e-4, 3e-3)},
    "digits_residual": {LR: (1e-3, 3e-3), LR_CP: (1e-3, 3e-3)},
    "digits_separable": {LR: (1e-3, 3e-3), LR_CP: (1e-3, 3e-3)},
    RESNET8: {LR: (1e-3, 3e-3), LR_CP: (1e-4, 3e-3)},
}
STEPS = {RESNET8: 100, **dict.fromkeys(DIGITS, 200)}
STATISTICS_IMAGES = 500  # that moments and batch norm are estimated on, at most


@dataclass(frozen=True)
class Point:
    """What a network is decomposed to.

    Attributes:
        scheme: one of `SCHEMES`.
        rule: one of `RULES`.
        ratio: parameters of the whole model before over after, at least.
    """

    scheme: str
    rule: str
    ratio: float

    def options(self, weights: Sequence[str]) -> EncodeOptions:
        """Return the options that say so; `weights` are those of all layers, in their order."""
        method: Method = "lr" if self.scheme == LR else "cp"
        overrides: list[tuple[str, dict[str, Any]]] = []
        if self.rule == COMMON:
            method = "ce1"
            overrides = [("*", {"decompose": "lr"})] if self.scheme == LR else []
            overrides += [(name, {"decompose": "none"}) for name in (weights[0], weights[-1])]
        decomposition = DecompositionOptions(method=method, compression_ratio=self.ratio)
        return EncodeOptions(decomposition=decomposition, overrides=tuple(overrides))


class Bench:
    """A trained network with its images; what several runs need of it is computed once.

    Attributes:
        judged: images that are not trained on.
        statistics_images: training images that moments and batch norm are estimated on.
        reference: outputs of the uncompressed network.
        calibration: moments of the inputs of its layers.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        with open_checkpoint(task.subject.checkpoint) as model:
            self.model = Model.from_arrays(dict(model.arrays()))
        self.judged = task.test if task.held_out is None else task.held_out
        self.statistics_images = task.train[0][:STATISTICS_IMAGES]
        module = trained_module(task.subject)
        self.reference: Array = outputs_of(module, self.judged[0]).numpy()
        self.calibration = calibrate(module, self.statistics_images.split(100))
        self._decompositions: dict[Point, Decomposition] = {}

    def decomposed(self, point: Point) -> Decomposition:
        """Return the factors; raises InvalidOptions where the ratio is out of reach."""
        if point not in self._decompositions:
            module = trained_module(self.task.subject)
            options = point.options(list(weight_layers(module).values()))
            self._decompositions[point] = decompose_model(
                self.model, options, module=module, calibration=self.calibration
            )
        return self._decompositions[point]

    def verdict(self, module: nn.Module, state: str) -> dict[str, float]:
        """Return accuracy in percent, and mean divergence in nats."""
        outputs = outputs_of(module, self.judged[0]).numpy()
        divergence = classification.divergence_from(outputs, self.reference)
        return {f"top1_{state}": self.top1(outputs), f"kl_{state}": divergence.mean()}

    def top1(self, outputs: Array) -> float:
        return float(100 * classification.scores(outputs, self.judged[1])["top1"].mean())


def run(
    bench: Bench, point: Point, seed: int, learning_rate: float, **training: Any
) -> dict[str, Any]:
    """Decompose, train and judge one network; return what is reported of it."""
    total = sum(parameter.size for parameter in bench.model.values())
    result: dict[str, Any] = {"of": total, "parameters": None, "failure": None}
    result["top1_uncompressed"] = bench.top1(bench.reference)
    result |= {f"{figure}_{state}": None for state in STATES for figure in ("top1", "kl")}
    try:
        decomposition = bench.decomposed(point)
    except InvalidOptions as error:
        if error.option != "compression_ratio":
            raise
        return {**result, "failure": str(error)}
    # Twice as fast as torch's usual order of elements: the chains have many depthwise layers.
    module = factorize(trained_module(bench.task.subject), decomposition.factorizations)
    module.to(memory_format=torch.channels_last)
    result["parameters"] = total - decomposition.saved
    result |= bench.verdict(module, "decomposed")
    images = [bench.statistics_images]
    reestimate_batch_norm(module, images)
    result |= bench.verdict(module, "batch_norm")
    torch.manual_seed(seed)  # new modules have drawn numbers, more if the bench was new
    try:
        task = replace(bench.task, learning_rate=learning_rate)
        train(module, task, optimizer=torch.optim.Adam, **training)
        reestimate_batch_norm(module, images)
    except InvalidModel as error:
        return {**result, "failure": str(error)}
    return result | bench.verdict(module, "tuned")


@cache
def make_bench(name: str, data: Path | None, fold: int, validate: bool) -> Bench:
    """Return a network; to `validate`, it is trained and judged on training images alone."""
    task = make_task(name, data, fold, None)
    return Bench(task.for_validation() if validate else task)


def measure(arguments: argparse.Namespace, log: RunLog) -> None:
    for seed, name, rule, ratio, scheme in product(
        arguments.seeds, arguments.subjects, arguments.rules, arguments.ratios, arguments.schemes
    ):
        training = {"steps": arguments.steps or STEPS[name]}
        training |= {"batch": arguments.batch, "smoothing": arguments.smoothing}
        rate = arguments.learning_rate or LEARNING_RATES[name][scheme][ratio > MILD]
        settings = {"subject": name, "scheme": scheme, "rule": rule, "ratio": ratio, "seed": seed,
                    **training, "learning_rate": rate, "validate": arguments.validate}  # fmt: skip
        if settings not in log:
            # The digits networks have one division of their images, whatever the seed.
            fold = seed % FOLDS if name == RESNET8 else 0
            bench = make_bench(name, arguments.data, fold, arguments.validate)
            point = Point(scheme, rule, ratio)
            log.run(settings, partial(run, bench, point, seed, rate, **training))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS, choices=[*DIGITS, RESNET8])
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, choices=SCHEMES)
    parser.add_argument("--rules", nargs="+", default=RULES, choices=RULES)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--steps", type=int, help="the subject's own by default")
    parser.add_argument("--learning-rate", type=float, help="of network and scheme by default")
    parser.add_argument(
        "--validate", action="store_true", help="judge by training images that are then left out"
    )
    run_command(parser.parse_args(), measure, summary)


if __name__ == "__main__":
    main()
