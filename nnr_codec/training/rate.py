"""Training for rate: weights learn as they will be decoded, and to where they code cheaply.

    rate = RateTraining(module, qp=-12, strength=0.5)
    fine_tune(module, optimizer, batches, rate.loss(cross_entropy), steps=2000)
    rate.finish()
    encode(module, "model.nnr", rate.options())

The network runs on the integers of the codec's step, through which gradients pass as if nothing
had been rounded (the straight-through estimator: Bengio et al., arXiv 1308.3432), and the loss has
a term for the bits that they take: those of an ideal coder for a two-sided geometric distribution
of the same mean magnitude, which adapts to each weight as the codec's does. What it draws all
weights of a tensor to zero by is the same for each, and the more, the cheaper zeros are by now; a
weight stays where the result needs it. (Tables of how often each magnitude occurs are no better a
guide, and say nothing where all are as frequent.) Needs the extra `torch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..bitstream.qp import step_size
from ..errors import InvalidOptions
from ..options import EncodeOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

Loss = Callable[[Any, Any], "torch.Tensor"]

_LEAST_MEAN = 1e-6
"""Mean magnitude that integers are taken to have at least: a tensor of zeros costs nothing."""


class RateTraining:
    """Trains weights as they are decoded, and for what they cost.

    Weights are all parameters of two and more dimensions, those of factorized layers included;
    vectors are trained as they are. While it lasts the weights are parametrized
    (``torch.nn.utils.parametrize``): the same parameters, under other names in the state dict.

    Attributes:
        qp: of all weights.
        strength: loss that a bit a weight counts as, in the mean over all weights.
    """

    def __init__(
        self, module: nn.Module, *, qp: int, strength: float, qp_density: int | None = None
    ) -> None:
        """Let the module run on quantized weights from now on.

        Args:
            module: in place; an optimizer of its parameters stays one.
            qp: quantization parameter of the weights, whose step they keep.
            strength: 0 and more. At 0.5 a bit more for each weight is worth 0.5 of the loss.
            qp_density: of the stream; by default that of `EncodeOptions`.

        Raises:
            InvalidOptions: `strength` is negative, the module has no weights or trains for rate
                already, or there is no such step.
        """
        if not strength >= 0:
            raise InvalidOptions("strength", f"{strength} is not 0 or more")
        self.qp, self.strength = qp, strength
        self._density = EncodeOptions().qp_density if qp_density is None else qp_density
        try:
            self._step = float(step_size(qp, self._density))
        except ValueError as error:
            raise InvalidOptions("qp", str(error)) from None
        self._places = list(_weights(module))
        if not self._places:
            raise InvalidOptions("module", "it has no weights of two and more dimensions")
        self._orders = {layer: list(layer._parameters) for layer, _ in self._places}
        self._parameters = _quantize(self._places, self._step)

    def bits(self) -> torch.Tensor:
        """Return the bits that all weights are about to take; gradients reach them."""
        import torch

        return torch.stack([_bits(p / self._step) for p in self._parameters]).sum()

    def loss(self, task: Loss) -> Loss:
        """Return a loss, of outputs and targets, that has the term of the rate as well."""
        elements = sum(parameter.numel() for parameter in self._parameters)

        def total(outputs: Any, targets: Any) -> torch.Tensor:
            return task(outputs, targets) + self.strength / elements * self.bits()

        return total

    def finish(self) -> None:
        """Make the weights those that the network has run on: ordinary parameters again, which the
        encoder, with `options`, gives back to the bit."""
        from torch.nn.utils import parametrize

        for layer, name in self._places:
            if parametrize.is_parametrized(layer, name):
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
        for layer, names in self._orders.items():
            for name in names:  # as they were: the state dict has their order
                layer._parameters[name] = layer._parameters.pop(name)

    def options(self) -> EncodeOptions:
        """Return options with which the stream has the integers that were trained."""
        return EncodeOptions(qp=self.qp, qp_density=self._density, dq=False, codebook=False)


def _bits(weight: torch.Tensor) -> torch.Tensor:
    """Return the bits of a weight in steps: its elements times the entropy of the two-sided
    geometric distribution (1 - t)/(1 + t) t^|k| that has the mean magnitude of its integers."""
    magnitudes = weight.abs()
    integers = magnitudes.detach().round()
    mean = (magnitudes + (integers - magnitudes.detach())).mean().clamp(min=_LEAST_MEAN)
    ratio = mean / (1 + (1 + mean.square()).sqrt())
    return weight.numel() * (((1 + ratio) / (1 - ratio)).log2() - mean * ratio.log2())


def _weights(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the layers with their parameters of two and more dimensions."""
    for layer in list(module.modules()):
        for name, parameter in list(layer._parameters.items()):
            if parameter is not None and parameter.dim() > 1:
                if name.startswith("original"):
                    raise InvalidOptions("module", "its weights are parametrized already")
                yield layer, name


def _quantize(places: list[tuple[nn.Module, str]], step: float) -> list[torch.Tensor]:
    """Parametrize weights by their quantization; return them, each one once."""
    import torch
    from torch import nn
    from torch.nn.utils import parametrize

    class Quantized(nn.Module):
        """The weight as it is decoded; gradients pass as if it had not been rounded."""

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            decoded = torch.round(weight / step) * step
            return weight + (decoded - weight).detach()

    parameters: dict[int, torch.Tensor] = {}
    for layer, name in places:
        parameter = getattr(layer, name)
        parameters.setdefault(id(parameter), parameter)
        parametrize.register_parametrization(layer, name, Quantized(), unsafe=True)
    return list(parameters.values())
