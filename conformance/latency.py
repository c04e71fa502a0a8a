"""Time and operations of factorized modules beside the dense ones, in one process.

    python -m conformance.latency --data FOLDER [--subjects …] [--methods …] [--ratios …]

Each network is decomposed, and its layers are replaced by ones that run on factors
(`nnr_codec.layers`). The module so made and the dense one run in turns on the same samples, one
thread, whose processor time is taken. A row is one method at one setting and one number of samples
at a time:

* `none`: a copy of the dense module, which tells how far from 1 the quotients get by chance;
* `lr`, `cp`, `tucker2`, `ht2`, `joint`: that form, the whole model at each of `--ratios` of
  parameters; those for kernels are left out for a network that has none;
* `auto-macs`, `auto-latency`: per layer the least work among the forms that keep each of
  `--energies`. Of time it is chosen for each number of samples, as what is faster depends on it.

Quotients are dense over factorized: above 1 is fewer or faster. `time x` is the median of the
rounds' quotients, `quartiles` are their range. Then every layer that was replaced, and that runs,
is timed anew against its dense one, on the inputs that it gets in the network: how many there are,
how many of them are faster, and the least quotient; at the end, how many of each method, over all
rows. A ratio that a method cannot reach is refused.
MACs are those of `nnr_codec.experiments.measures.complexity`, of all samples.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.studies.figures import argument_parser
from conformance.studies.latency_rows import COLUMNS, METHODS, Case, cases, row_of, summary
from conformance.subjects import source_of
from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.cli.text import table
from nnr_codec.decompose import Decomposition, decompose_model
from nnr_codec.decompose.layer_kinds import weights_of_model
from nnr_codec.decompose.timing import times_in_turns
from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.evaluation import trained_module
from nnr_codec.experiments.measures.complexity import measure_complexity
from nnr_codec.experiments.subject import Subject
from nnr_codec.experiments.subject_source import find_subject
from nnr_codec.factorization.forms import FactoredWeight
from nnr_codec.layers import factorize
from nnr_codec.model import Parameter
from nnr_codec.user.module import apply, sample_count

SUBJECTS = [
    source_of("cifar_resnets.py:resnet20_cifar10"),
    source_of("cifar_resnets.py:resnet56_cifar10"),
    source_of("squeezenet.py:squeezenet_imagenet"),
    source_of("minilm.py:minilm_pairs"),
]


@dataclass(frozen=True)
class Network:
    """A network with its weights."""

    name: str
    module: nn.Module
    model: Mapping[str, Parameter]


@dataclass(frozen=True)
class Rounds:
    """How often modules and layers are timed: at least `count` rounds, and more for `seconds`."""

    count: int
    seconds: float

    def times(self, calls: Sequence[Callable[[], object]], parts: int = 1) -> np.ndarray:
        """Return what `times_in_turns` does, in one of so many parts of the seconds."""
        return times_in_turns(calls, self.count, self.seconds / parts)


def samples(subject: Subject, count: int) -> Any:
    """Return the inputs of the first `count` samples as one batch.

    Raises:
        SystemExit: the subject has fewer.
    """
    parts = [inputs for inputs, _ in subject.sampled(limit=count).batches()]
    several = isinstance(parts[0], tuple)
    joined: Any = tuple(map(torch.cat, zip(*parts, strict=True))) if several else torch.cat(parts)
    available = sample_count(joined)
    if available != count:
        raise SystemExit(f"{subject.name}: has {available} samples, not {count}")
    return joined


def measure(
    network: Network, batches: Mapping[int, Any], case: Case, rounds: Rounds
) -> Iterator[dict[str, Any]]:
    """Decompose a network and yield its figures for each batch, by the number of samples."""
    decomposition: Decomposition | None = None
    for count, inputs in batches.items():
        row = {"network": network.name, "samples": count, **asdict(case)}
        try:
            if decomposition is None or case.method == "auto-latency":
                decomposition = decompose_model(
                    network.model, case.options, module=network.module, inputs=(inputs, None)
                )
        except InvalidOptions as error:
            if error.option != "compression_ratio":
                raise
            yield {**row, "refused": str(error)}
            continue
        yield {**row, **compare(network.module, decomposition.factorizations, inputs, rounds)}


@torch.inference_mode()
def compare(
    dense: nn.Module, weights: Mapping[str, FactoredWeight], inputs: Any, rounds: Rounds
) -> dict[str, Any]:
    """Return operations and times of a module, and of one with some weights as factors."""
    modules = (dense, factorize(copy.deepcopy(dense), weights))
    costs = [measure_complexity(module, inputs) for module in modules]
    times = rounds.times([partial(apply, module, inputs) for module in modules])
    return {
        "forms": dict(Counter(weight.form for weight in weights.values())),
        "parameters": [cost.parameters for cost in costs],
        "macs": [cost.macs for cost in costs],
        "seconds": np.median(times, axis=0).tolist(),
        "quotients": quotients(times),
        "layers": layer_quotients(*modules, list(weights), inputs, rounds),
    }


def quotients(times: np.ndarray) -> list[float]:
    """Return quartiles of the first column over the second, by round: lower, median, upper."""
    return [float(value) for value in np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75))]


def layer_quotients(
    dense: nn.Module, factorized: nn.Module, names: Sequence[str], inputs: Any, rounds: Rounds
) -> dict[str, float]:
    """Time layers against those that replaced them, by name of the weight: medians of quotients.

    Each gets what it is given when the dense module first runs it.
    """
    paths = {name: name.rpartition(".")[0] for name in names}
    layer_inputs: dict[str, tuple[Any, ...]] = {}
    handles = [
        dense.get_submodule(path).register_forward_pre_hook(
            lambda _, arguments, name=name: layer_inputs.setdefault(name, arguments) and None
        )
        for name, path in paths.items()
    ]
    apply(dense, inputs)
    for handle in handles:
        handle.remove()
    medians = {}
    for name, arguments in layer_inputs.items():
        layers = [module.get_submodule(paths[name]) for module in (dense, factorized)]
        calls = [partial(layer, *arguments) for layer in layers]
        medians[name] = quotients(rounds.times(calls, parts=len(layer_inputs)))[1]
    return medians


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rounds = Rounds(arguments.rounds, arguments.seconds)
    figures = []
    for source in arguments.subjects:
        subject = find_subject(source, arguments.data)
        batches = {count: samples(subject, count) for count in arguments.samples}
        module = trained_module(subject).eval()
        with open_checkpoint(subject.checkpoint) as model:
            has_kernels = "convolution" in {w.kind for w in weights_of_model(model, module)}
            network = Network(subject.name, module, model)
            for case in cases(arguments.methods, arguments.ratios, arguments.energies, has_kernels):
                for row in measure(network, batches, case, rounds):
                    figures.append(row)
                    print(" ".join(row_of(row)), row.get("refused", ""), file=sys.stderr)
    return figures


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of models and data")
    about = "networks (default: four of conformance/subjects)"
    parser.add_argument(
        "--subjects", nargs="+", metavar="FILE.py:FUNCTION", default=SUBJECTS, help=about
    )
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--ratios", type=float, nargs="+", default=[2.0, 3.0, 5.0])
    parser.add_argument("--energies", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 32], help="at a time")
    parser.add_argument("--rounds", type=int, default=11, help="of dense and factorized, at least")
    parser.add_argument("--seconds", type=float, default=2.0, help="of rounds, if they are short")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = run(arguments)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        print(table(COLUMNS, [row_of(row) for row in figures]), summary(figures), sep="\n\n")


if __name__ == "__main__":
    main()
