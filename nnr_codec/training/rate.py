"""Training for rate: weights learn as they will be decoded, and to where they code cheaply.

    rate = RateTraining(module, qp=-12, strength=0.5)
    fine_tune(module, optimizer, batches, rate.loss(cross_entropy), steps=2000)
    rate.finish()
    fold_batch_norm(module)
    encode(module, "model.nnr", rate.options())

Steps suit weights of one size best; `relative_qps` gives each weight a step of its own.

The network runs on the integers of the codec's step, through which gradients pass as if nothing
had been rounded (the straight-through estimator: Bengio et al., arXiv 1308.3432). What is trained
`unrounded` feels the term of the rate alone, and is for `encode` with `calibration`.

The loss has a term for the bits that they take: those of an ideal coder for a two-sided geometric
distribution of the same mean magnitude, which adapts to each weight as the codec's does. What it
draws all weights of a tensor to zero by is the same for each, and the more, the cheaper zeros are
by now; a weight stays where the result needs it. (Tables of how often each magnitude occurs are no
better a guide, and say nothing where all are as frequent.) Needs the extra `torch`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Any

from ..bitstream.qp import qp_of_step, step_size
from ..errors import InvalidModel, InvalidOptions
from ..options import EncodeOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

Loss = Callable[[Any, Any], "torch.Tensor"]

VECTOR_FRACTION = 1 / 128
"""Of the root mean square of a vector, that its step is at most."""

_LEAST_MEAN = 1e-6
"""Mean magnitude that integers are taken to have at least: a tensor of zeros costs nothing."""


class RateTraining:
    """Trains weights as they are decoded, and for what they cost.

    Weights are all parameters of two and more dimensions, those of factorized layers included;
    vectors are trained as they are. While it lasts the weights are parametrized
    (``torch.nn.utils.parametrize``): the same parameters, under other names in the state dict.

    Attributes:
        qps: of the weights, by name.
        strength: loss that a bit a weight counts as, in the mean over all weights.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        qp: int | Mapping[str, int],
        strength: float,
        qp_density: int | None = None,
        unrounded: bool = False,
    ) -> None:
        """Let the module run on quantized weights from now on.

        Args:
            module: in place; an optimizer of its parameters stays one.
            qp: quantization parameter of the weights, whose step they keep: one for all, or by name
                (:func:`relative_qps`). Of a weight under several names, the first one counts.
            strength: 0 and more. At 0.5 a bit more for each weight is worth 0.5 of the loss.
            qp_density: of the stream; by default that of `EncodeOptions`.
            unrounded: the weights are not quantized yet.

        Raises:
            InvalidOptions: `strength` is negative, the module has no weights or is quantized by
                another one, there is no such step, or a weight has no qp.
        """
        if not strength >= 0:
            raise InvalidOptions("strength", f"{strength} is not 0 or more")
        self.strength = strength
        self._module = module
        self._density = _density(qp_density)
        places = list(_weights(module))
        if not places:
            raise InvalidOptions("module", "it has no weights of two and more dimensions")
        self._weights = _distinct(places, qp, self._density)
        self.qps = {weight.name: weight.qp for weight in self._weights}
        self._places = [(layer, name) for _, layer, name in places]
        self._orders = {layer: list(layer._parameters) for layer, _ in self._places}
        self._unrounded = unrounded
        if not unrounded:
            _quantize(self._places, self._weights)

    def bits(self) -> torch.Tensor:
        """Return the bits that all weights are about to take; gradients reach them."""
        import torch

        bits = [_bits(weight.parameter.float() / weight.step) for weight in self._weights]
        return torch.stack([each.to(bits[0].device) for each in bits]).sum()

    def loss(self, task: Loss | None) -> Loss:
        """Return a loss, of outputs and targets, that has the term of the rate as well.

        Args:
            task: what it is added to; None: nothing, where a teacher's loss is all there is.
        """
        elements = sum(weight.parameter.numel() for weight in self._weights)

        def total(outputs: Any, targets: Any) -> torch.Tensor:
            rate = self.strength / elements * self.bits()
            return rate if task is None else task(outputs, targets) + rate

        return total

    def finish(self) -> None:
        """Make the weights those that the network has run on: ordinary parameters again, which the
        encoder, with `options`, gives back to the bit, if they are not `unrounded`."""
        from torch.nn.utils import parametrize

        for layer, name in self._places:
            if parametrize.is_parametrized(layer, name):
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
        for layer, names in self._orders.items():
            for name in names:  # as they were: the state dict has their order
                layer._parameters[name] = layer._parameters.pop(name)

    def options(self, *, factored: bool = False) -> EncodeOptions:
        """Return options with which the stream has the integers that were trained.

        Vectors that are trained have steps that are a small fraction of their sizes: with the usual
        fine one they would take a large part of what is left. Statistics of batch norm have the
        usual one; :func:`~nnr_codec.training.fold_batch_norm` takes them out of the stream.

        Args:
            factored: whether factorized layers are encoded as
                :func:`~nnr_codec.layers.factored_weights` gives them, rather than with the module.

        Raises:
            InvalidOptions: they were trained without being rounded.
        """
        if self._unrounded:
            raise InvalidOptions("unrounded", "there are no integers yet: encode with calibration")
        from ..layers.writing import coded_names

        ((usual, _),) = Counter(self.qps.values()).most_common(1)
        qps = {name: qp for name, qp in self.qps.items() if qp != usual}
        qps |= _vector_qps(self._module, self._density)
        names = coded_names(self._module) if factored else {}
        options = EncodeOptions(qp=usual, qp_density=self._density, dq=False, codebook=False)
        return options.with_own({names.get(name, name): {"qp": qp} for name, qp in qps.items()})


def relative_qps(
    module: nn.Module, fraction: float, *, qp_density: int | None = None
) -> dict[str, int]:
    """Return qp by the names of weights, such that steps are as fine for small weights as for large
    ones.

    Args:
        module: what is about to be trained for rate.
        fraction: of the root mean square of a weight, that its step is at most; 1 is about two bits
            a weight before training.
        qp_density: of the stream; by default that of `EncodeOptions`.

    Weights that are 0 everywhere, as some are before training, get the median qp of the others.

    Raises:
        InvalidModel: a weight is not finite, or all are 0.
        InvalidOptions: `fraction` is no finite number above 0.
    """
    if not 0 < fraction < math.inf:
        raise InvalidOptions("fraction", f"{fraction} is no finite number above 0")
    qps: dict[str, int | None] = {}
    for name, layer, parameter in _weights(module):
        size = _root_mean_square(getattr(layer, parameter))
        if not math.isfinite(size):
            raise InvalidModel(name, "is not finite")
        qps[name] = qp_of_step(fraction * size, _density(qp_density)) if size else None
    known = [qp for qp in qps.values() if qp is not None]
    if not known:
        raise InvalidModel("module", "all its weights are 0, or there are none")
    usual = median_low(known)
    return {name: usual if qp is None else qp for name, qp in qps.items()}


def _root_mean_square(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def _vector_qps(module: nn.Module, density: int) -> dict[str, int]:
    """Return qp of the vectors that are trained and not 0, by their names."""
    vectors = {name: p for name, p in module.named_parameters() if p.dim() == 1}
    sizes = {name: _root_mean_square(vector) for name, vector in vectors.items()}
    return {
        name: qp_of_step(VECTOR_FRACTION * size, density)
        for name, size in sizes.items()
        if 0 < size < math.inf
    }


def _density(given: int | None) -> int:
    return EncodeOptions().qp_density if given is None else given


@dataclass(frozen=True)
class _Weight:
    """A parameter, once, whatever layers share it."""

    name: str
    parameter: torch.Tensor
    qp: int
    step: float


def _distinct(
    places: list[tuple[str, nn.Module, str]], qp: int | Mapping[str, int], density: int
) -> list[_Weight]:
    """Return the weights; raises InvalidOptions if one has no qp, or that no step."""
    weights: dict[int, _Weight] = {}
    for name, layer, own in places:
        parameter = getattr(layer, own)
        if id(parameter) in weights:
            continue
        value = qp.get(name) if isinstance(qp, Mapping) else qp
        if value is None:
            raise InvalidOptions("qp", f"the weight {name!r} has none")
        try:
            step = float(step_size(value, density))
        except ValueError as error:
            raise InvalidOptions("qp", str(error)) from None
        weights[id(parameter)] = _Weight(name, parameter, value, step)
    return list(weights.values())


def _bits(weight: torch.Tensor) -> torch.Tensor:
    """Return the bits of a weight in steps: its elements times the entropy of the two-sided
    geometric distribution (1 - t)/(1 + t) t^|k| that has the mean magnitude of its integers."""
    magnitudes = weight.abs()
    integers = magnitudes.detach().round()
    mean = (magnitudes + (integers - magnitudes.detach())).mean().clamp(min=_LEAST_MEAN)
    ratio = mean / (1 + (1 + mean.square()).sqrt())
    return weight.numel() * (((1 + ratio) / (1 - ratio)).log2() - mean * ratio.log2())


def _weights(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield names, layers, and what the layers call their parameters of two and more dimensions."""
    from torch.nn.utils import parametrize

    for prefix, layer in list(module.named_modules()):
        for name, parameter in list(layer._parameters.items()):
            if parameter is not None and parameter.dim() > 1:
                if isinstance(layer, parametrize.ParametrizationList):
                    raise InvalidOptions("module", "its weights are parametrized already")
                yield f"{prefix}.{name}".lstrip("."), layer, name


def _quantize(places: list[tuple[nn.Module, str]], weights: list[_Weight]) -> None:
    """Parametrize weights by their quantization."""
    import torch
    from torch import nn
    from torch.nn.utils import parametrize

    class Quantized(nn.Module):
        """The weight as it is decoded; gradients pass as if it had not been rounded."""

        def __init__(self, step: float) -> None:
            super().__init__()
            self.step = step

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            decoded = (torch.round(weight.float() / self.step) * self.step).to(weight)
            return weight + (decoded - weight).detach()

    steps = {id(weight.parameter): weight.step for weight in weights}
    for layer, name in places:
        step = steps[id(getattr(layer, name))]
        parametrize.register_parametrization(layer, name, Quantized(step), unsafe=True)
