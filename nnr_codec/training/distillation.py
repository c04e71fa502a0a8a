"""Training of a quantized network's vectors towards the outputs of the original one.

Scales, offsets and biases learn; what the integers of weights say stays as it is. No labels are
needed. Needs the extra `torch`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..calibration.held_back import samples_of
from ..calibration.outputs import Outputs, float_output, output_of, targets_of, with_classes_last
from ..calibration.perturbation import perturbed
from ..user.module import (
    apply_with,
    evaluating,
    in_mode,
    inputs_of,
    sample_count,
    untied_names,
)
from .teacher import TEMPERATURE, softened_divergence

if TYPE_CHECKING:
    import torch

_PASSES = 10
_STEP_SAMPLES = 50
_RATE = 1e-3
"""Of a tensor's root mean square, by which Adam moves its values in a step, in the beginning."""

_LEAST_SIZE = 1e-3
"""Root mean square that a tensor is taken to have at least: biases may all be 0."""

_SEED = 0

Tensors = dict[str, "torch.Tensor"]


def distill(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    names: Collection[str],
    batches: Sequence[Any],
    judge: Callable[[Tensors], float],
    *,
    outputs: Outputs | None = None,
    perturb: Callable[[Any, torch.Generator], Any] | None = None,
) -> Tensors:
    """Return vectors with which the outputs are closer to those of the original network.

    Adam with a cosine schedule, for ten passes over the samples, which are perturbed in every
    other one. What is judged best after a pass is returned, so that few samples do no harm.

    Args:
        module: the original network, which runs in evaluation mode and stays as it is.
        tensors: of the quantized one, by their names in the state dict.
        names: of the vectors that may be changed; tied ones, and statistics, are not.
        batches: inputs, or pairs (inputs, targets).
        judge: returns how bad vectors are, by other samples than these.
        outputs: "classes": the divergence of softmaxes counts; "values": the squared error does;
            None: as :func:`~nnr_codec.calibration.outputs.output_of` has it.
        perturb: returns inputs that are changed a little, with a generator; None: as
            :func:`~nnr_codec.calibration.perturbation.perturbed`.

    Returns:
        The vectors, of the types of `tensors`; empty if none is better than what `tensors` have.
    """
    import torch

    leaves = _leaves(module, tensors, names)
    if not leaves:
        return {}
    optimizer = torch.optim.Adam([
        {"params": [leaf], "lr": _RATE * max(_size(leaf), _LEAST_SIZE)} for leaf in leaves.values()
    ])  # fmt: skip
    steps = _PASSES * sum(1 for batch in batches for _ in _pieces(batch))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    generator = torch.Generator().manual_seed(_SEED)
    change = perturb or perturbed
    best: Tensors = {}
    least = judge({})
    for number in range(_PASSES):
        with in_mode(module, training=False):
            for batch in _shuffled(batches, generator):
                inputs = inputs_of(batch)
                inputs = change(inputs, generator) if number % 2 else inputs
                typed = {name: leaf.to(tensors[name]) for name, leaf in leaves.items()}
                loss = _loss(module, {**tensors, **typed}, inputs, batch, outputs)
                if not loss.requires_grad:  # no vector is felt where gradients are taken
                    return {}
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        found = {name: leaf.detach().to(tensors[name]).clone() for name, leaf in leaves.items()}
        if (loss_now := judge(found)) < least:
            least, best = loss_now, found
    return best


def _leaves(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], names: Collection[str]
) -> Tensors:
    """Return the vectors that learn, float32 or wider."""
    import torch

    wanted = set(names) & untied_names(module) & tensors.keys()
    vectors = [n for n, p in module.named_parameters() if n in wanted and p.dim() <= 1]
    types = {name: torch.promote_types(tensors[name].dtype, torch.float32) for name in vectors}
    return {n: tensors[n].detach().to(types[n], copy=True).requires_grad_() for n in vectors}


def _size(values: torch.Tensor) -> float:
    return float(values.detach().square().mean().sqrt())


def _loss(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    inputs: Any,
    batch: Any,
    outputs: Outputs | None,
) -> torch.Tensor:
    """Return how far the outputs are from those of the module with its own tensors."""
    with evaluating(module):
        expected, kind = output_of(module, inputs, batch, outputs)
    output = float_output(apply_with(module, tensors, inputs))
    if kind == "values":
        energy = (expected - expected.mean()).square().sum()
        return (output - expected).square().sum() / energy.clamp_min(1e-30)
    output = with_classes_last(output, targets_of(batch))
    return softened_divergence(output, expected, TEMPERATURE)


def _shuffled(batches: Sequence[Any], generator: torch.Generator) -> Iterator[Any]:
    """Yield the pieces of batches in another order."""
    import torch

    pieces = [piece for batch in batches for piece in _pieces(batch)]
    for index in torch.randperm(len(pieces), generator=generator).tolist():
        yield pieces[index]


def _pieces(batch: Any) -> Iterator[Any]:
    """Cut a batch into those that one step is made with."""
    count = sample_count(inputs_of(batch))
    for start in range(0, count, _STEP_SAMPLES):
        yield samples_of(batch, list(range(start, min(start + _STEP_SAMPLES, count))), count)
