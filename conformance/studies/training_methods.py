"""Ways of training a decomposed network, side by side: in steps, by a teacher, with pruned ranks.

    python -m conformance.studies.training_methods -o RUNS.jsonl
    python -m conformance.studies.training_methods -o RUNS.jsonl --table

All begin with the trained network and make as many steps of Adam, with LR + CP by the common
fraction (the first layer and the classifier stay dense), fitted to training images:

* `at once`: it is decomposed, and its factors are trained;
* `in 3 steps`: `decompose_gradually`, a third of the training after each decomposition;
* `teacher`: at once, with the dense network as teacher;
* `pruned`: it is decomposed to half of the ratio; `RankPruning` brings it to the parameters that
  `at once` has in the first quarter of the training.

Each run ends with batch norm estimated anew, and appends a line of JSON to RUNS.jsonl; those that
are there already are not repeated. Runs are seeded; one thread.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from functools import partial
from itertools import product
from operator import itemgetter
from typing import Any

from torch import nn, optim

from conformance.fine_tuning import COMMON, LR_CP, Bench, Point, make_bench
from conformance.studies.training_tasks import DIGITS, RunLog, argument_parser, run_command
from nnr_codec.cli.text import table
from nnr_codec.experiments.evaluation import trained_module
from nnr_codec.training import (
    Distillation,
    RankPruning,
    decompose_gradually,
    fine_tune,
    reestimate_batch_norm,
)
from nnr_codec.user.module import weight_layers

METHODS = ("at once", "in 3 steps", "teacher", "pruned")
RATIOS = (8.0, 12.0)
PARTS = 3
STEPS, LEARNING_RATE = 240, 3e-3


def run(bench: Bench, method: str, ratio: float, given: argparse.Namespace) -> dict[str, Any]:
    """Decompose, train and judge one network; return what is reported of it."""
    dense = trained_module(bench.task.subject).eval()
    teacher = Distillation(dense) if method == "teacher" else None
    layers = list(weight_layers(dense).values())
    images = bench.statistics_images
    target = _parameters(_decomposed(dense, Point(LR_CP, COMMON, ratio), layers, images))

    def train(module: nn.Module, steps: int, pruning: RankPruning | None = None) -> None:
        optimizer = optim.Adam(module.parameters(), LEARNING_RATE)
        schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

        def after_step() -> None:
            schedule.step()
            if pruning is not None:
                pruning.step()

        loss = partial(nn.functional.cross_entropy, label_smoothing=given.smoothing)
        fine_tune(module, optimizer, bench.task.batches(given.batch), loss, steps=steps,
                  distillation=teacher, after_step=after_step)  # fmt: skip

    if method == "pruned":
        module = _decomposed(dense, Point(LR_CP, COMMON, ratio / 2), layers, images)
        pruning = RankPruning(module, bench.task.batches(given.batch), parameters=target,
                              steps=given.steps // 4)  # fmt: skip
        train(module, given.steps, pruning)
        pruning.finish()
    else:
        parts = PARTS if method == "in 3 steps" else 1
        options = Point(LR_CP, COMMON, ratio).options(layers)
        module = decompose_gradually(
            copy.deepcopy(dense), options, lambda module: train(module, given.steps // parts),
            steps=parts, batches=images.split(100),
        )  # fmt: skip
    reestimate_batch_norm(module, [images])
    return {"parameters": _parameters(module)} | bench.verdict(module, "tuned")


def _decomposed(dense: nn.Module, point: Point, layers: list[str], images: Any) -> nn.Module:
    return decompose_gradually(
        copy.deepcopy(dense), point.options(layers), lambda module: None, steps=1,
        batches=images.split(100),
    )  # fmt: skip


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def measure(given: argparse.Namespace, log: RunLog) -> None:
    for seed, name, ratio, method in product(
        given.seeds, given.subjects, given.ratios, given.methods
    ):
        settings = {"subject": name, "ratio": ratio, "method": method, "seed": seed,
                    "steps": given.steps}  # fmt: skip
        if settings not in log:
            bench = make_bench(name, None, 0, False)
            log.run(settings, partial(run, bench, method, ratio, given))


def summary(log: RunLog) -> str:
    """Return a table: means over the seeds, and the range of the accuracy."""
    rows = []
    for (subject, ratio, steps, method), lines in log.groups(
        itemgetter("subject", "ratio", "steps", "method")
    ):
        top1 = [line["top1_tuned"] for line in lines]
        rows.append([
            subject, f"{ratio:g}", str(steps), method, str(len(lines)),
            str(max(line["parameters"] for line in lines)), f"{statistics.mean(top1):.2f}",
            f"{min(top1):.2f}-{max(top1):.2f}",
            f"{statistics.mean(line['kl_tuned'] for line in lines):.3f}",
        ])  # fmt: skip
    return table(
        ("subject", "ratio", "steps", "method", "seeds", "parameters", "top-1", "range", "KL"), rows
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--subjects", nargs="+", default=["digits_cnn"], choices=list(DIGITS))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--steps", type=int, default=STEPS)
    run_command(parser.parse_args(), measure, summary)


if __name__ == "__main__":
    main()
