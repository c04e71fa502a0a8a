"""What a layer's kernel sees of its input, position by position. Needs the extra `torch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def windows(layer: Any, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return what the kernel sees of `inputs` at each position of `output`.

    A view, so that it takes no memory: (samples, channels, taps ..., positions ...), with as many
    dimensions of taps and of positions as the layer has; of transposed convolutions the taps come
    in reverse order. For linear layers each vector counts as a sample: (samples, channels).
    """
    from torch.nn import functional

    kernel = layer.weight.shape[2:]
    rank = len(kernel)
    if not rank:
        return inputs.reshape(-1, inputs.shape[-1])
    if inputs.dim() == rank + 1:  # one sample alone
        inputs, output = inputs.unsqueeze(0), output.unsqueeze(0)
    stride = layer.stride
    reach = [d * (k - 1) for d, k in zip(layer.dilation, kernel, strict=True)]
    if layer.transposed:
        inputs, padding = _spread(layer, inputs, output.shape[2:], reach)
        stride = (1,) * rank
        padded = functional.pad(inputs, padding)
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = functional.pad(inputs, _padding(layer, reach), mode)
        padded = functional.pad(padded, _missing(padded, output, stride, reach))
    steps = padded.stride()
    taps = [step * d for step, d in zip(steps[2:], layer.dilation, strict=True)]
    moves = [step * s for step, s in zip(steps[2:], stride, strict=True)]
    shape = (*padded.shape[:2], *kernel, *output.shape[2:])
    return padded.as_strided(shape, (*steps[:2], *taps, *moves))


def _padding(layer: Any, reach: list[int]) -> list[int]:
    """Return what a convolution adds before and after each dimension, the last dimension first."""
    if layer.padding == "valid":
        sides = [(0, 0)] * len(reach)
    elif layer.padding == "same":
        sides = [(size // 2, size - size // 2) for size in reach]
    else:
        sides = [(size, size) for size in layer.padding]
    return [size for side in reversed(sides) for size in side]


def _missing(
    padded: torch.Tensor, output: torch.Tensor, stride: tuple[int, ...], reach: list[int]
) -> list[int]:
    """Return what a layer has added by itself to get its output, the last dimension first.

    Layers that pad in a `forward` of their own do as TensorFlow does: on both sides alike, and one
    more behind.
    """
    sides = []
    sizes = zip(padded.shape[2:], output.shape[2:], stride, reach, strict=True)
    for size, positions, step, far in sizes:
        lacking = max((positions - 1) * step + far + 1 - size, 0)
        sides.append((lacking // 2, lacking - lacking // 2))
    return [size for side in reversed(sides) for size in side]


def _spread(
    layer: Any, inputs: torch.Tensor, positions: torch.Size, reach: list[int]
) -> tuple[torch.Tensor, list[int]]:
    """Turn the input of a transposed convolution into that of one with stride 1.

    Return it with zeros between its values, and the padding, which can be negative.
    """
    stride = layer.stride
    sizes = [(size - 1) * s + 1 for size, s in zip(inputs.shape[2:], stride, strict=True)]
    spread = inputs.new_zeros((*inputs.shape[:2], *sizes))
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = inputs
    sides = []
    for size, end, far, cut in zip(sizes, positions, reach, layer.padding, strict=True):
        before = far - cut
        sides.append((before, end + far - before - size))
    return spread, [size for side in reversed(sides) for size in side]
