"""Training for low rank against ordinary fine-tuning, at equal ranks, steps and learning rates.

    python -m conformance.projection_training --data FOLDER -o RUNS.jsonl [--subjects …] [--seeds …]
    python -m conformance.projection_training --table -o RUNS.jsonl

Every run starts from the trained network and ends with factors of the same ranks (the first layer
and the classifier stay dense):

* `none`: the network is decomposed, not trained;
* `fine-tuning`: it is decomposed, and the factors are trained;
* `projection`: it is trained in full, its kernels being replaced by their low-rank reconstructions
  every so often and at the end (`nnr_codec.training`);
* `dense`: it is trained and never decomposed: what this training alone does to it. Ratio 1.

All but `dense` end with the re-estimation of batch norm on the training images. Each run appends a
line of JSON to RUNS.jsonl; those that are there already are not repeated. Runs are seeded; one
thread.

What each network trains on and is judged by: `conformance/studies/training_tasks.py`.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from conformance.studies.training_tasks import (
    DIGITS,
    RESNET8,
    RunLog,
    Task,
    argument_parser,
    make_task,
    run_command,
    top1,
    train,
)
from nnr_codec.cli.text import table
from nnr_codec.experiments.evaluation import trained_module
from nnr_codec.factorization.forms import FactoredWeight
from nnr_codec.training import LowRankProjection, ranks_at_ratio, reestimate_batch_norm
from nnr_codec.user.module import weight_layers

METHODS = ("none", "fine-tuning", "projection", "dense")


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
    module = trained_module(task.subject)
    dense = sum(parameter.numel() for parameter in module.parameters())
    *names, _ = weight_layers(module).values()  # without the classifier: ten classes need rank ten
    ranks = ranks_at_ratio(module, ratio, form=arguments.form, only=names)
    if method == "dense":
        ranks = {}
    projection = LowRankProjection(module, ranks, every=arguments.every)
    tuned = partial(train, module, task, steps=arguments.steps, batch=arguments.batch,
                    smoothing=arguments.smoothing)  # fmt: skip
    if method == "projection":
        tuned(after_step=projection.step)
    factored = projection.project()
    saved = sum(module.get_parameter(name).numel() - w.parameter_count
                for name, w in factored.items())  # fmt: skip
    if method == "fine-tuning":
        for name, weight in factored.items():
            layer = module.get_submodule(name.rpartition(".")[0])
            parametrize.register_parametrization(layer, "weight", Product(weight))
    if method in ("fine-tuning", "dense"):
        tuned()
    if method != "dense":
        reestimate_batch_norm(module, task.train[0].split(500))
    held_out = None if task.held_out is None else top1(module, task.held_out)
    test = top1(module, task.test)
    return {"parameters": dense - saved, "of": dense, "held_out": held_out, "test": test}


def measure(arguments: argparse.Namespace, log: RunLog) -> None:
    for seed, name, method, ratio in product(
        arguments.seeds, arguments.subjects, arguments.methods, arguments.ratios
    ):
        settings = _settings(arguments, name, method, ratio, seed)
        if settings not in log:
            task = make_task(name, arguments.data, seed, arguments.learning_rate)
            log.run(settings, partial(run, task, method, ratio, arguments))


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


def summary(log: RunLog) -> str:
    """Return a table of what is in the output: means over the seeds, and the range of the test."""

    def alike(line: dict[str, Any]) -> tuple[Any, ...]:
        share = line["of"] / line["parameters"]
        order = METHODS.index(line["method"])
        key = (line["subject"], line["form"] or "", line["ratio"], share, order)
        return (*key, line["steps"], line["every"] or 0)

    rows = []
    for (subject, form, ratio, share, order, steps, every), lines in log.groups(alike):
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
    parser = argument_parser(__doc__)
    parser.add_argument("--subjects", nargs="+", default=[*DIGITS, RESNET8])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--ratios", type=float, nargs="+", default=[2.0, 3.0, 5.0])
    parser.add_argument("--form", choices=("tucker2", "lr"), default="tucker2")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=200, help="steps between replacements")
    parser.add_argument("--learning-rate", type=float, help="the subject's own by default")
    run_command(parser.parse_args(), measure, summary)


if __name__ == "__main__":
    main()
