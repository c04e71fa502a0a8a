"""Gradients of batch norms' statistics, and which batch norms can be folded.

Needs the extra `torch`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..user.module import apply, apply_with, evaluating, untied_names, weight_layers
from .foldable_norms import FoldableNorm
from .outputs import float_output

if TYPE_CHECKING:
    import torch

_SAME_GRADIENT = 1e-3
"""Of the largest one, by which gradients that should be the same may differ."""

_SAME_OUTPUT = 1e-3
"""Likewise, of outputs."""


@dataclass(eq=False)
class _Norm:
    """A batch norm, and what was seen of it.

    Attributes:
        start: of the names of its vectors.
        layer: with scale, offset and statistics.
        bias: name and values of the bias in what it takes; None: there is none.
        calls: how often it ran.
        squares: of the gradients of its scale, folded, with its bias in the offset, and without.
        has_own_bias: whether nothing but the norm takes what the bias is added to.
    """

    start: str
    layer: Any
    bias: tuple[str, Any] | None = None
    calls: int = 0
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])
    has_own_bias: bool = True

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
            self.has_own_bias &= values.grad is not None and _alike(expected, values.grad)
        for index, gradient in enumerate((moved, plain)):
            self.squares[index] += float(gradient.square().sum())

    def foldable(self, samples: int) -> FoldableNorm | None:
        """Return how it can be folded, by so many samples; None: not at all."""
        bias = self.bias[0] if self.bias is not None and self.has_own_bias else None
        epsilon = float(self.layer.eps)
        square = self.squares[0 if self.has_own_bias else 1] / (1 + epsilon)
        sensitivity = square / (samples * self.layer.num_features)
        if not self.calls or not math.isfinite(sensitivity):
            return None
        return FoldableNorm(
            scale=f"{self.start}weight",
            offset=f"{self.start}bias",
            mean=f"{self.start}running_mean",
            variance=f"{self.start}running_var",
            epsilon=epsilon,
            bias=bias,
            scale_sensitivity=sensitivity,
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
            if isinstance(layer, kinds) and layer.affine and layer.running_var is not None
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

    def foldable(self, samples: int) -> tuple[FoldableNorm, ...]:
        """Return the norms that can be folded, by what was seen of so many samples."""
        found = (norm.foldable(samples) for norm in self._norms.values())
        return tuple(n for n in found if n is not None and self._untied.issuperset(n.names))


def checked_norms(
    module: torch.nn.Module, inputs: Any, norms: tuple[FoldableNorm, ...]
) -> tuple[FoldableNorm, ...]:
    """Return norms with which, folded, the module returns the same for these inputs.

    That is all of them, or all with their biases as they are, or none: a module may use a vector in
    other ways than its layer does.
    """
    without = tuple(replace(norm, bias=None) for norm in norms)
    for tried in (norms, without) if norms != without else (norms,):
        if tried and _are_same(module, inputs, tried):
            return tried
    return ()


def _are_same(module: torch.nn.Module, inputs: Any, norms: tuple[FoldableNorm, ...]) -> bool:
    import torch

    state = module.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for norm in norms:
        vectors = {name: state[name].detach().float().cpu().numpy() for name in norm.names}
        folded = norm.folded(vectors)
        if folded is not None:
            tensors |= {n: torch.from_numpy(values).to(state[n]) for n, values in folded.items()}
    with evaluating(module):
        expected = float_output(apply(module, inputs))
        found = float_output(apply_with(module, tensors, inputs))
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    difference = float((found - expected).abs().max()) if expected.numel() else 0.0
    return difference <= _SAME_OUTPUT * largest  # which NaN is not


def _alike(expected: torch.Tensor, found: torch.Tensor) -> bool:
    largest = float(expected.abs().max())
    return float((found - expected).abs().max()) <= _SAME_GRADIENT * largest
