"""Ranks pruned while a factorized network is trained, those first that the result feels least.

    pruning = RankPruning(module, batches, parameters=30_000, steps=100)
    fine_tune(module, optimizer, batches, loss, steps=400, after_step=pruning.step)
    pruning.finish()

A component of a rank (a column of one factor and the row of the next) is thought of as having a
scale, which is 1. What the loss would rise by without it is half the curvature of the loss by that
scale, near a minimum: the mean square of the derivative of losses whose targets are drawn from the
network's own outputs (as in Molchanov et al. 2019, arXiv 1906.10771, whose targets are the labels;
a network that fits these has hardly any gradients of them). As the product is linear in each
factor, it is the sum of elements times gradients of any factor that the component is in. What is
least for each parameter that is saved goes, of all layers together. Needs the extra `torch`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..calibration.outputs import Outputs, output_of, sampled_loss
from ..errors import InvalidModel, InvalidOptions
from ..factorization.forms import FORMS
from ..user.module import in_mode, inputs_of, parameter_uses
from .fine_tuning import endless
from .rank_components import RankComponents

if TYPE_CHECKING:
    from torch import nn

EVERY = 5
JUDGED = 4
_SEED = 0


class RankPruning:
    """Prunes components of the ranks of factorized layers, in place, in the course of training.

    Those that are pruned are zero from then on; `finish` takes them out of the layers. Ranks are
    those of low rank, CP, Tucker-2 and hierarchical Tucker-2; each stays at least 1. Layers that
    share a factor, as joint forms do, and factors that are not trained, stay as they are.

    Attributes:
        target: parameters of the module, in the end.
        steps: of the optimizer until that is reached.
        every: steps between prunings.
        judged: batches that a pruning looks at.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Iterable[Any],
        *,
        parameters: int,
        steps: int,
        every: int = EVERY,
        judged: int = JUDGED,
        outputs: Outputs | None = None,
    ) -> None:
        """Look at the module; nothing is pruned yet.

        Args:
            module: with factorized layers; `RateTraining` may have begun on it.
            batches: inputs, or pairs (inputs, targets), iterated again and again: the module runs
                on these in evaluation mode. Of targets only their type counts.
            parameters: of the whole module, that it is to have in the end, or a few less.
            steps: within which that is reached, by a geometric series; some more, without pruning,
                let the network recover.
            every: steps between prunings.
            judged: batches that a pruning looks at.
            outputs: as of :class:`~nnr_codec.calibration.gradients.OutputGradients`.

        Raises:
            InvalidOptions: `steps`, `every` or `judged` is less than 1, nothing can be pruned, or
                there are more parameters even at ranks of 1.
        """
        import torch

        for name, value in (("steps", steps), ("every", every), ("judged", judged)):
            if value < 1:
                raise InvalidOptions(name, f"{value} is less than 1")
        self.target, self.steps, self.every, self.judged = parameters, steps, every, judged
        self._module, self._batches, self._outputs = module, endless(batches), outputs
        self._generator = torch.Generator().manual_seed(_SEED)
        self._steps_made = 0
        self._is_finished = False
        self._layers = _layers(module)
        if not self._layers:
            raise InvalidOptions("module", "it has no factorized layers whose ranks can be pruned")
        total = sum(parameter.numel() for parameter in module.parameters())
        self._others = total - sum(layer.parameters for layer in self._layers)
        fewest = self._others + sum(layer.fewest_parameters for layer in self._layers)
        if parameters < fewest:
            raise InvalidOptions("parameters", f"{parameters}: at ranks of 1 there are {fewest}")
        self._first = total

    @property
    def parameters(self) -> int:
        """Parameters that the module has without what is pruned."""
        return self._others + sum(layer.parameters for layer in self._layers)

    @property
    def ranks(self) -> dict[str, tuple[int, ...]]:
        """What is left of the ranks, by the names of the layers."""
        return {layer.name: tuple(layer.ranks) for layer in self._layers}

    def step(self) -> None:
        """Count a step of the optimizer, and prune after every `every`-th, and the last of `steps`.
        After :meth:`finish` nothing happens.

        Raises:
            InvalidModel: outputs, or gradients of factors, are not finite.
            InvalidOptions: there are no more batches.
        """
        if self._is_finished:
            return
        self._steps_made += 1
        if self._steps_made == self.steps:
            self._prune(self.target)
        elif self._steps_made < self.steps and self._steps_made % self.every == 0:
            part = self._steps_made / self.steps
            self._prune(self._first ** (1 - part) * self.target**part)
        for layer in self._layers:
            layer.clear()

    def _prune(self, target: float) -> None:
        """Take the least components until the module has at most so many parameters."""
        for layer in self._layers:
            layer.clear()
        self._look()
        left = self.parameters
        while left > target:
            least = min(self._layers, key=RankComponents.cheapest)
            before = least.parameters
            least.prune(least.cheapest()[1])
            left -= before - least.parameters

    def _look(self) -> None:
        """Let the layers judge their components by some batches."""
        import torch

        judging = [parameter for layer in self._layers for parameter in layer.judging]
        with in_mode(self._module, training=False):
            for batch in islice(self._batches, self.judged):
                output, kind = output_of(self._module, inputs_of(batch), batch, self._outputs)
                if not bool(output.isfinite().all()):
                    raise InvalidModel("module", "its outputs are not finite")
                loss = sampled_loss(output.float(), kind, self._generator)
                found = torch.autograd.grad(loss, judging, allow_unused=True)
                pairs = zip(judging, found, strict=True)
                gradients = iter([torch.zeros_like(p) if g is None else g for p, g in pairs])
                for layer in self._layers:
                    layer.add(list(islice(gradients, len(layer.ranks))))
        for layer in self._layers:
            layer.judge()

    def finish(self) -> None:
        """Take what is pruned out of the layers, and first what is too much if there were fewer
        steps. Their parameters are new then: if training goes on, it needs a new optimizer.

        Raises:
            InvalidModel: the module is trained for rate, which has to finish first; or as `step`.
            InvalidOptions: there are no more batches.
        """
        from torch.nn.utils import parametrize

        for layer in self._layers:
            if any(parametrize.is_parametrized(part) for part in layer.layer.children()):
                raise InvalidModel(layer.name, "is trained for rate: finish that first")
        if self.parameters > self.target:
            self._prune(self.target)
        for layer in self._layers:
            layer.cut()
        self._is_finished = True


def _layers(module: nn.Module) -> list[RankComponents]:
    """Return the factorized layers whose factors are trained, and theirs alone."""
    from ..layers import FactorizedLayer

    factorized = {
        layer: (name, _factors(layer))
        for name, layer in module.named_modules()
        if isinstance(layer, FactorizedLayer) and not FORMS[layer.form].shared
    }
    uses = parameter_uses(module)
    return [
        RankComponents(name, layer, factors)
        for layer, (name, factors) in factorized.items()
        if all(p.requires_grad and uses[id(p)] == 1 for p, _ in factors)
    ]


def _factors(layer: Any) -> list[tuple[Any, Any]]:
    """Return the parameters of the factors with their layouts, also while they are parametrized.

    Raises:
        InvalidModel: they are parametrized by something else than one tensor of their shape.
    """
    from torch.nn.utils import parametrize

    factors = []
    for name, layout in layer.layouts.items():
        part = getattr(layer, name)
        parameter = part.weight
        if parametrize.is_parametrized(part, "weight"):
            parameter = getattr(part.parametrizations.weight, "original", None)
            if parameter is None or parameter.shape != layout.weight_shape:
                raise InvalidModel(name, "is parametrized by other tensors than one of its shape")
        factors.append((parameter, layout))
    return factors
