"""The convolutions and linear layers that a factorized layer consists of, without values yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_META = torch.device("meta")  # values come with the factors


class _Tiled:
    """A convolution each of whose groups has the same weight, which is kept once."""

    groups: int

    def _conv_forward(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        weight = _tiled(weight, self.groups)
        result: torch.Tensor = super()._conv_forward(input, weight, bias)  # type: ignore[misc]
        return result


class TiledConv1d(_Tiled, nn.Conv1d):
    """`nn.Conv1d` with the same weight, (outputs / groups, inputs / groups, d), for each group."""


class TiledConv2d(_Tiled, nn.Conv2d):
    """Like :class:`TiledConv1d`."""


class TiledConv3d(_Tiled, nn.Conv3d):
    """Like :class:`TiledConv1d`."""


class _TiledTransposed:
    """The same for transposed convolutions: (in_channels / groups, out_channels / groups, …)."""

    def forward(self, input: torch.Tensor, output_size: Any = None) -> torch.Tensor:
        layer: Any = self
        dimensions = len(layer.kernel_size)
        output_padding = layer._output_padding(
            input,
            output_size,
            layer.stride,
            layer.padding,
            layer.kernel_size,
            dimensions,
            layer.dilation,
        )
        result: torch.Tensor = _TRANSPOSE[dimensions](
            input,
            _tiled(layer.weight, layer.groups),
            layer.bias,
            layer.stride,
            layer.padding,
            output_padding,
            layer.groups,
            layer.dilation,
        )
        return result


class TiledConvTranspose1d(_TiledTransposed, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` with the same weight for each group."""


class TiledConvTranspose2d(_TiledTransposed, nn.ConvTranspose2d):
    """Like :class:`TiledConvTranspose1d`."""


class TiledConvTranspose3d(_TiledTransposed, nn.ConvTranspose3d):
    """Like :class:`TiledConvTranspose1d`."""


_TRANSPOSE: dict[int, Any] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TILED = (TiledConv1d, TiledConv2d, TiledConv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TILED_TRANSPOSED = (TiledConvTranspose1d, TiledConvTranspose2d, TiledConvTranspose3d)


def _tiled(weight: torch.Tensor, groups: int) -> torch.Tensor:
    return weight.repeat(groups, *[1] * (weight.ndim - 1))


def is_convolution(layer: nn.Module) -> bool:
    """Whether a layer is a convolution, not transposed, that factors can replace."""
    return type(layer) in _CONVOLUTIONS


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution that factors can replace."""
    return type(layer) in _TRANSPOSED


def pointwise(dimensions: int, inputs: int, outputs: int, groups: int = 1) -> nn.Module:
    """Return a 1x…x1 convolution; with no `dimensions`, a linear layer."""
    if not dimensions:
        return nn.Linear(inputs, outputs, bias=False, device=_META)
    kind = _CONVOLUTIONS[dimensions - 1]
    return kind(inputs, outputs, 1, groups=groups, bias=False, device=_META)


def with_taps(
    layer: Any,
    inputs: int,
    outputs: int,
    axes: Iterable[int] | None = None,
    groups: int = 1,
    kinds: Sequence[Any] = _CONVOLUTIONS,
) -> nn.Module:
    """Return a convolution that has the kernel of `layer` along some axes, and 1 along the others.

    Args:
        layer: gives kernel size, stride, padding, dilation and padding mode.
        inputs, outputs: channels.
        axes: spatial axes, from 0; None: all.
        groups: of the new convolution.
        kinds: its classes in 1-d, 2-d and 3-d.
    """
    dimensions = len(layer.kernel_size)
    chosen = set(range(dimensions) if axes is None else axes)

    def kept(values: tuple[int, ...], other: int) -> tuple[int, ...]:
        return tuple(value if axis in chosen else other for axis, value in enumerate(values))

    # "same" and "valid" hold for each axis by itself.
    padding = layer.padding if isinstance(layer.padding, str) else kept(layer.padding, 0)
    part: nn.Module = kinds[dimensions - 1](
        inputs,
        outputs,
        kept(layer.kernel_size, 1),
        stride=kept(layer.stride, 1),
        padding=padding,
        dilation=kept(layer.dilation, 1),
        groups=groups,
        bias=False,
        padding_mode=layer.padding_mode,
        device=_META,
    )
    return part


def tiled(layer: Any, rank: int) -> nn.Module:
    """Return a convolution to `rank` channels for each group of `layer`, by one weight."""
    kinds = _CONVOLUTIONS if layer.groups == 1 else _TILED
    channels = rank * layer.groups
    return with_taps(layer, layer.in_channels, channels, groups=layer.groups, kinds=kinds)


def tiled_transposed(layer: Any, rank: int) -> nn.Module:
    """Return the transposed convolution from `rank` channels for each group of `layer`."""
    dimensions = len(layer.kernel_size)
    kinds = _TRANSPOSED if layer.groups == 1 else _TILED_TRANSPOSED
    return kinds[dimensions - 1](
        rank * layer.groups,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        output_padding=layer.output_padding,
        groups=layer.groups,
        bias=False,
        dilation=layer.dilation,
        device=_META,
    )
