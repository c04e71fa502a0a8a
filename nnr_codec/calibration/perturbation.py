"""Inputs changed a little: gradients of samples that a network was trained on are too small.

Needs the extra `torch`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..user.module import with_parts

if TYPE_CHECKING:
    import torch

_NOISE = 0.05  # of the deviation of inputs
_SHIFT = 4  # pixels, at most an eighth of the image


def perturbed(inputs: Any, generator: torch.Generator) -> Any:
    """Return inputs with shifts, flips and blur of images, noise of 5 % of their deviation on other
    floats, and integers as they are.

    Images are tensors of four dimensions with 1 or 3 channels. Containers of other types than
    Python's own, and sparse tensors, stay as they are.
    """
    import torch

    if not isinstance(inputs, torch.Tensor):
        return with_parts(partial(perturbed, generator=generator), inputs)
    if not inputs.is_floating_point() or inputs.layout != torch.strided or inputs.numel() < 2:
        return inputs
    if inputs.dim() == 4 and inputs.shape[1] in (1, 3) and len(inputs):
        return _perturbed_images(inputs, generator)
    noise = torch.randn(inputs.shape, generator=generator, device="cpu").to(inputs)
    return inputs + _NOISE * inputs.std() * noise


def _perturbed_images(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift, mirror and blur images, each by chance."""
    import torch
    from torch.nn import functional

    count, height, width = len(images), images.shape[2], images.shape[3]
    most = min(_SHIFT, height // 8, width // 8)
    padded = functional.pad(images, (most,) * 4, mode="reflect") if most else images
    shifts = torch.randint(0, 2 * most + 1, (count, 2), generator=generator, device="cpu")
    mirrored = torch.rand(count, generator=generator, device="cpu").tolist()
    changed = []
    for image, (down, right), chance in zip(padded, shifts.tolist(), mirrored, strict=True):
        part = image[:, down : down + height, right : right + width]
        changed.append(part.flip(-1) if chance < 0.5 else part)
    stacked = torch.stack(changed)
    blurred = functional.avg_pool2d(stacked, 3, 1, 1, count_include_pad=False)
    share = torch.rand((count, 1, 1, 1), generator=generator, device="cpu").to(images)
    return stacked + share * (blurred - stacked)
