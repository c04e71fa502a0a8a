"""Gradients of batch norms' statistics, and which batch norms can be folded.

Needs the extra `torch`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..user.module import untied_names, weight_layers
from .foldable_norms import FoldableNorm

if TYPE_CHECKING:
    import torch

_SAME_GRADIENT = 1e-3
"""Of the largest one, by which gradients that should be the same may differ."""


@dataclass(eq=False)
class _Norm:
    """A batch norm, and what was seen of it.

    Attributes:
        start: of the names of its vectors.
        layer: with scale, offset and statistics.
        bias: name and values of the bias in what it takes; None: there is none.
        calls: how often it ran.
        squares: of the gradients of its scale, folded, with the bias in its offset, and without.
        has_own_bias: whether, by all gradients, nothing but the norm takes what the bias is added
            to; None: no gradient was seen.
    """

    start: str
    layer: Any
    bias: tuple[str, Any] | None = None
    calls: int = 0
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])
    has_own_bias: bool | None = None

    def statistics(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the gradients of running mean and variance by those of what is behind them:
        y = gamma (x - mean) / sqrt(var + epsilon) + beta."""
        gamma, total = self.layer.weight.detach(), self.layer.running_var + self.layer.eps
        yield f"{self.start}running_mean", self.layer.bias.grad * gamma / total.sqrt()
        yield f"{self.start}running_var", self.layer.weight.grad * gamma / (2 * total)

    def add(self) -> None:
        """Add the squared gradients of the folded scale, and look at that of the bias.

        As the scale is that of x itself, its gradient is sqrt(var) times that of gamma and mean
        times that of beta; less the bias, if that is not in x any more.
        """
        layer = self.layer
        deviation = (layer.running_var + layer.eps).sqrt()
        slope = layer.bias.grad.double()
        plain = deviation * layer.weight.grad.double() + layer.running_mean * slope
        moved = plain
        if self.bias is not None:
            values = self.bias[1]
            moved = plain - values.detach() * slope
            expected = slope * layer.weight.detach() / deviation
            if values.grad is None or not _alike(expected, values.grad):
                self.has_own_bias = False
            elif self.has_own_bias is None and bool(expected.any()):
                self.has_own_bias = True
        for index, gradient in enumerate((moved, plain)):
            self.squares[index] += float(gradient.square().sum())

    def foldable(self, samples: int) -> tuple[FoldableNorm, FoldableNorm] | None:
        """Return how it can be folded, by so many samples, with its bias if that can be, and
        without; None: not at all."""
        bias = self.bias[0] if self.bias is not None and self.has_own_bias else None
        moved, plain = (square / samples for square in self.squares)
        if not any(self.squares) or not math.isfinite(moved + plain):
            return None
        alone = self._folded(None, plain)
        return (alone if bias is None else self._folded(bias, moved)), alone

    def _folded(self, bias: str | None, square: float) -> FoldableNorm:
        epsilon = float(self.layer.eps)
        return FoldableNorm(
            scale=f"{self.start}weight",
            offset=f"{self.start}bias",
            mean=f"{self.start}running_mean",
            variance=f"{self.start}running_var",
            epsilon=epsilon,
            bias=bias,
            scale_sensitivity=square / (1 + epsilon) / self.layer.num_features,
        )


class NormGradients:
    """Follows the batch norms of a module through its runs, and through those backwards."""

    def __init__(self, module: torch.nn.Module) -> None:
        """`module`: whose state dict names the vectors."""
        from torch import nn

        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        named = [(f"{name}." if name else "", layer) for name, layer in module.named_modules()]
        self._norms = {
            layer: _Norm(start, layer)
            for start, layer in named
            if isinstance(layer, kinds) and _has_all_vectors(layer)
        }
        own, layers = untied_names(module), weight_layers(module)
        self._untied = own
        self._biases = {
            layer: (f"{start}bias", layer.bias)
            for start, layer in named
            if layer in layers and layer.bias is not None and f"{start}bias" in own
        }
        self._made: dict[int, tuple[weakref.ref[Any], tuple[str, Any]]] = {}

    def hooks(self) -> Mapping[Any, Callable[[Any, Any, Any, Any], None]]:
        """Return what has to be called after each norm, and each layer with a bias."""
        after_layers = dict.fromkeys(self._biases, self._after_layer)
        return {**after_layers, **dict.fromkeys(self._norms, self._after_norm)}

    def _after_layer(self, layer: Any, args: Any, kwargs: Any, output: Any) -> None:
        if output.dim() == layer.weight.dim():  # channels are the second dimension, as norms'
            self._made[id(output)] = weakref.ref(output), self._biases[layer]

    def _after_norm(self, layer: Any, args: Any, kwargs: Any, output: Any) -> None:
        norm = self._norms[layer]
        taken = args[0] if args else kwargs["input"]
        reference, bias = self._made.get(id(taken), (None, None))
        bias = bias if reference is not None and reference() is taken else None
        if norm.calls and (bias and bias[0]) != (norm.bias and norm.bias[0]):
            norm.has_own_bias = False  # of another layer each time
        norm.bias = norm.bias or bias
        norm.calls += 1

    def statistics(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and gradients of running statistics, and see what else gradients tell; after
        a run backwards."""
        for norm in self._norms.values():
            if norm.layer.weight.grad is not None and norm.layer.bias.grad is not None:
                norm.add()
                yield from norm.statistics()
        self._made.clear()

    def foldable(self, samples: int) -> list[tuple[FoldableNorm, FoldableNorm]]:
        """Return the norms that can be folded, by what gradients tell of so many samples: each with
        its bias if that can be, and without."""
        found = (norm.foldable(samples) for norm in self._norms.values())
        return [pair for pair in found if pair and self._untied.issuperset(pair[0].names)]


def _has_all_vectors(layer: Any) -> bool:
    vectors = layer.weight, layer.bias, layer.running_mean, layer.running_var
    return layer.num_features > 0 and all(vector is not None for vector in vectors)


def _alike(expected: torch.Tensor, found: torch.Tensor) -> bool:
    largest = float(expected.abs().max())
    return float((found - expected).abs().max()) <= _SAME_GRADIENT * largest
