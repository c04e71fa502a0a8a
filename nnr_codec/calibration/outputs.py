"""What a module returns, and the loss whose gradients tell how much its result feels errors.

Needs the extra `torch`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import InvalidModel
from ..user.module import apply, hooked_layers, weight_layers

if TYPE_CHECKING:
    import torch

Outputs = Literal["classes", "values"]

_EVEN = 0.5
"""Part of the chances of labels that is the same for all classes: a network is surer of what it is
calibrated with, often what it was trained on, than of what it will see."""


def float_output(result: Any) -> torch.Tensor:
    """Return the first tensor of floats in what a module returns, with gradients or not.

    A single number, such as the loss that some modules return before their outputs, counts only if
    there is nothing else, and is returned as a vector.

    Raises:
        InvalidModel: there is none.
    """
    import torch

    parts = result.values() if isinstance(result, Mapping) else result
    if isinstance(result, torch.Tensor):
        parts = (result,)
    found = [
        part
        for part in (parts if isinstance(parts, Iterable) else ())
        if isinstance(part, torch.Tensor) and part.is_floating_point()
    ]
    outputs = [part for part in found if part.dim()]
    if found:
        return outputs[0] if outputs else found[0].reshape(1)
    raise InvalidModel("module", f"returns no tensor of floats, but {type(result).__name__}")


def output_of(
    module: torch.nn.Module, inputs: Any, batch: Any, outputs: Outputs | None = None
) -> tuple[torch.Tensor, Outputs]:
    """Call a module with inputs; return its output, with classes last, and what it is of.

    Args:
        module: of torch.
        inputs: those of the batch, or what was made of them.
        batch: has the targets, if it has any.
        outputs: what the output is said to be of. None: of classes, if targets are integers, or if
            there are none and the output has two dimensions and comes from a linear layer or a
            convolution as it is; but of values, if it has one for each sample.

    Raises:
        InvalidModel: the module returns no tensor of floats.
    """
    made: list[weakref.ref[Any]] = []
    hooks = dict.fromkeys(weight_layers(module), lambda *call: made.append(weakref.ref(call[-1])))
    with hooked_layers(hooks):
        output = float_output(apply(module, inputs))
    is_of_layer = any(reference() is output for reference in made)
    targets = targets_of(batch)
    output = with_classes_last(output, targets)
    return output, outputs or _kind(targets, output, is_of_layer=is_of_layer)


def sampled_loss(output: torch.Tensor, kind: Outputs, generator: torch.Generator) -> torch.Tensor:
    """Return the loss of an output against targets that are drawn from itself.

    Of classes it is about the cross entropy of labels drawn from its softmax, of values its product
    with a random direction: the mean square of its gradient is the curvature of the KL divergence,
    and of half the squared error.
    """
    import torch
    from torch.nn import functional

    if kind == "values":
        direction = torch.randn(output.shape, generator=generator).to(output)
        return (output * direction).sum()
    flat = output.flatten(0, -2) if output.dim() > 2 else output
    chances = functional.softmax(flat.detach().float().cpu(), -1)
    chances = (1 - _EVEN) * chances + _EVEN / flat.shape[-1]
    labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
    directions = functional.one_hot(labels, flat.shape[-1]) - chances
    return (flat * directions.to(flat)).sum()


def targets_of(batch: Any) -> Any:
    """Return the targets of a batch; None: it has none."""
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None


def with_classes_last(output: torch.Tensor, targets: Any) -> torch.Tensor:
    """Move the classes of each pixel, as torch's losses have them, where those of tokens are."""
    shape, wanted = tuple(output.shape), tuple(getattr(targets, "shape", ()))
    if output.dim() > 2 and wanted == shape[:1] + shape[2:] != shape[:-1]:
        return output.movedim(1, -1)
    return output


def _kind(targets: Any, output: torch.Tensor, *, is_of_layer: bool) -> Outputs:
    if output.dim() < 2 or output.shape[-1] == 1:  # no classes to draw from
        return "values"
    if targets is None:
        return "classes" if output.dim() == 2 and is_of_layer else "values"
    return "classes" if _are_integers(targets) else "values"


def _are_integers(targets: Any) -> bool:
    if hasattr(targets, "is_floating_point"):
        return not targets.is_floating_point()
    try:
        return np.asarray(targets).dtype.kind in "iu"
    except ValueError:  # of different lengths
        return False
