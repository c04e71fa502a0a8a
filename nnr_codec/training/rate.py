"""Training for rate: weights learn as they will be decoded, and to where they code cheaply.

    rate = RateTraining(module, qp=-20, strength=0.05)
    loss = rate.loss(cross_entropy)
    fine_tune(module, optimizer, batches, loss, steps=2000, after_step=rate.step)
    rate.finish()
    encode(module, "model.nnr", rate.options())

The network runs on the integers of the codec's step, through which gradients pass as if nothing
had been rounded (the straight-through estimator: Bengio et al., arXiv 1308.3432); and the loss has
a term for the bits that the integers take. These are estimated as an adaptive coder would count
them, by how often each magnitude occurs now, and between the integers along straight lines, so
that each weight is drawn to the cheaper of its neighbours as far as the result bears it (Alvarez
and Salzmann 2017, arXiv 1711.01068, has the like of it for sums of groups). Needs the extra
`torch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..bitstream.qp import step_size
from ..errors import InvalidOptions
from ..options import EncodeOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

Loss = Callable[[Any, Any], "torch.Tensor"]

EVERY = 20
"""Steps between two countings of magnitudes."""

_MOST = 64
"""Magnitudes that are counted one by one; larger ones cost as much as their number of digits."""


class RateTraining:
    """Trains weights as they are decoded, and for what they cost.

    Weights are all parameters of two and more dimensions, those of factorized layers included;
    vectors are trained as they are. While it lasts the weights are parametrized
    (``torch.nn.utils.parametrize``): the same parameters under other names in the state dict.

    Attributes:
        qp: of all weights.
        strength: loss that a bit a weight counts as, in the mean over all weights.
        every: steps between two countings of magnitudes.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        qp: int,
        strength: float,
        qp_density: int | None = None,
        every: int = EVERY,
    ) -> None:
        """Let the module run on quantized weights from now on.

        Args:
            module: in place; an optimizer of its parameters stays one.
            qp: quantization parameter of the weights, whose step they keep.
            strength: 0 and more. At 0.05 a bit more for each weight is worth 0.05 of the loss.
            qp_density: of the stream; by default that of `EncodeOptions`.
            every: steps between two countings of magnitudes.

        Raises:
            InvalidOptions: `strength` is negative, `every` less than 1, the module has no weights
                or trains for rate already, or there is no such step.
        """
        if not strength >= 0:
            raise InvalidOptions("strength", f"{strength} is not 0 or more")
        if every < 1:
            raise InvalidOptions("every", f"{every} is less than 1")
        self.qp, self.strength, self.every = qp, strength, every
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
        self._steps = 0
        self._bits: list[torch.Tensor] = []
        self.count()

    def count(self) -> None:
        """Count how often each magnitude occurs in each weight, which tells what it costs."""
        import torch

        tables = [bits_of_magnitudes(self._magnitudes(p)) for p in self._parameters]
        self._bits = [
            torch.tensor(table, dtype=torch.float32, device=parameter.device)
            for table, parameter in zip(tables, self._parameters, strict=True)
        ]

    def _magnitudes(self, parameter: torch.Tensor) -> npt.NDArray[np.int64]:
        levels = (parameter.detach().abs() / self._step).round().clamp(max=_MOST)
        return np.bincount(levels.long().flatten().cpu().numpy(), minlength=_MOST + 1)

    def bits(self) -> torch.Tensor:
        """Return the bits that all weights take, as far as is known; gradients reach them."""
        parts = [
            _interpolated(table, parameter.abs() / self._step).sum()
            for table, parameter in zip(self._bits, self._parameters, strict=True)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def loss(self, task: Loss) -> Loss:
        """Return a loss, of outputs and targets, that has the term of the rate as well."""
        elements = sum(parameter.numel() for parameter in self._parameters)

        def total(outputs: Any, targets: Any) -> torch.Tensor:
            return task(outputs, targets) + self.strength / elements * self.bits()

        return total

    def step(self) -> None:
        """Count a step of the optimizer."""
        self._steps += 1
        if self._steps % self.every == 0:
            self.count()

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


def bits_of_magnitudes(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return what an integer of each magnitude costs, its sign included, where magnitudes occur so
    often; those that do not occur follow the slope of the ones that do.

    Args:
        counts: of the magnitudes from 0 on; the last one stands for all that are larger.
    """
    shares = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    bits = -np.log2(shares)
    bits[1:] += 1  # the sign
    highest = int(np.flatnonzero(counts)[-1]) if counts.any() else 0
    last = max(highest, 1)
    beyond = np.maximum(np.arange(len(counts)) - last, 0)
    bits = np.where(beyond > 0, bits[last] + 2 * np.log2(1 + beyond), bits)
    return np.maximum.accumulate(bits)  # no larger magnitude is cheaper: nothing drives weights up


def _interpolated(table: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """Return the bits of magnitudes between those of the table."""
    clamped = magnitudes.clamp(max=len(table) - 1)
    low = clamped.detach().floor().long().clamp(max=len(table) - 2)
    left = table[low]
    return left + (table[low + 1] - left) * (clamped - low)


def _weights(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the layers with their parameters of two and more dimensions."""
    for layer in list(module.modules()):
        for name, parameter in list(layer._parameters.items()):
            if parameter is not None and parameter.dim() > 1:
                if name == "original" or name.startswith("original"):
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
