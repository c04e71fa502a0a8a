"""Second moments of the gradients at layers' outputs: how much the network's result feels them.

The result's KL divergence, or squared error, changes by about gᵀ e for a small error e of a layer's
output, with the gradient g of a loss whose targets are drawn from the network's own output. The
moments Γ = E[g gᵀ], a natural-gradient (Fisher) metric, join the inputs' moments as in K-FAC
(arXiv 1503.05671). Inputs are perturbed: on samples that a network was trained on, and is sure of,
gradients are many times too small. Needs the extra `torch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import InvalidModel
from ..model import Float64
from ..user.module import apply, hooked, in_mode, inputs_of, weight_layers

if TYPE_CHECKING:
    import torch

Outputs = Literal["classes", "values"]
_NOISE = 0.05  # of the deviation of inputs
_SHIFT = 4  # pixels, at most an eighth of the image
_SEED = 0


class OutputGradients:
    """Collects E[g gᵀ] over the positions of each layer's output, batch by batch.

    Args:
        module: whose state dict names the weights.
        outputs: "classes": labels are drawn from the softmax of the output; "values": the output is
            projected to a random direction. None: classes, if targets are integers, or if there are
            none and the output has two dimensions; but values, if the output has one for each
            sample.
        perturb: returns the inputs of a batch, changed a little, with a generator of random
            numbers. None: shifts, flips and blur of images, noise of 5 % of their deviation for
            other floats, and integers as they are.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        outputs: Outputs | None = None,
        perturb: Callable[[Any, torch.Generator], Any] | None = None,
    ) -> None:
        import torch

        self._module = module
        self._outputs = outputs
        self._perturb = perturb or _perturbed
        self._generator = torch.Generator().manual_seed(_SEED)
        self._sums: dict[str, Float64] = {}
        self._positions: dict[str, int] = {}

    def add(self, batch: Any) -> None:
        """Add the gradients of a batch, in evaluation mode; afterwards all is as it was.

        Raises:
            InvalidModel: the output is no tensor of floats that has gradients.
        """
        module = self._module
        layers = weight_layers(module)
        hooks = {layer: _on_gradient(name, self._note) for layer, name in layers.items()}
        with in_mode(module, training=False), _differentiable(module), hooked(hooks):
            output = _output(apply(module, self._perturb(inputs_of(batch), self._generator)))
            targets = _targets_of(batch)
            output = _with_classes_last(output, targets)
            kind = self._outputs or _kind(targets, output)
            _loss(output, kind, self._generator).backward()  # type: ignore[no-untyped-call]

    def moments(self) -> dict[str, Float64]:
        """Return E[g gᵀ], (outputs, outputs), by the weights' names; without those that are not
        finite, of which nothing is known."""
        means = {name: total / self._positions[name] for name, total in self._sums.items()}
        return {name: mean for name, mean in means.items() if np.isfinite(mean).all()}

    def _note(self, name: str, layer: Any, gradient: torch.Tensor) -> None:
        if not hasattr(layer, "in_features"):  # channels come behind the samples, if there are any
            gradient = gradient.movedim(1 if gradient.dim() == layer.weight.dim() else 0, -1)
        rows = gradient.reshape(-1, gradient.shape[-1]).double().cpu().numpy()
        self._sums[name] = self._sums.get(name, np.zeros(())) + rows.T @ rows
        self._positions[name] = self._positions.get(name, 0) + len(rows)


def _targets_of(batch: Any) -> Any:
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None


def _with_classes_last(output: torch.Tensor, targets: Any) -> torch.Tensor:
    """Move the classes of each pixel, as torch's losses have them, where those of tokens are."""
    shape, wanted = tuple(output.shape), tuple(getattr(targets, "shape", ()))
    if output.dim() > 2 and wanted == shape[:1] + shape[2:] != shape[:-1]:
        return output.movedim(1, -1)
    return output


def _kind(targets: Any, output: torch.Tensor) -> Outputs:
    if output.dim() < 2 or output.shape[-1] == 1:  # no classes to draw from
        return "values"
    if hasattr(targets, "is_floating_point") and not targets.is_floating_point():
        return "classes"
    return "classes" if targets is None and output.dim() == 2 else "values"


def _output(result: Any) -> torch.Tensor:
    """Return the first tensor of floats in what a module returns."""
    import torch

    parts = result.values() if isinstance(result, Mapping) else result
    if isinstance(result, torch.Tensor):
        parts = (result,)
    for part in parts if isinstance(parts, Iterable) else ():
        if isinstance(part, torch.Tensor) and part.is_floating_point() and part.requires_grad:
            return part
    raise InvalidModel("module", f"returns no tensor with gradients, but {type(result).__name__}")


def _loss(output: torch.Tensor, kind: Outputs, generator: torch.Generator) -> torch.Tensor:
    import torch
    from torch.nn import functional

    if kind == "values":
        direction = torch.randn(output.shape, generator=generator).to(output)
        return (output * direction).sum()
    flat = output.flatten(0, -2) if output.dim() > 2 else output
    chances = functional.softmax(flat.detach().float().cpu(), -1)
    labels = torch.multinomial(chances, 1, generator=generator)[:, 0].to(output.device)
    return functional.cross_entropy(flat, labels, reduction="sum")


def _perturbed(inputs: Any, generator: torch.Generator) -> Any:
    import torch

    if isinstance(inputs, Mapping):
        return {key: _perturbed(value, generator) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(_perturbed(value, generator) for value in inputs)
    if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point():
        return inputs
    if inputs.dim() == 4 and inputs.shape[1] in (1, 3):
        return _perturbed_images(inputs, generator)
    noise = torch.randn(inputs.shape, generator=generator).to(inputs)
    return inputs + _NOISE * inputs.std() * noise


def _perturbed_images(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift, mirror and blur images, each by chance."""
    import torch
    from torch.nn import functional

    count, height, width = len(images), images.shape[2], images.shape[3]
    most = min(_SHIFT, height // 8, width // 8)
    padded = functional.pad(images, (most,) * 4, mode="reflect") if most else images
    shifts = torch.randint(0, 2 * most + 1, (count, 2), generator=generator).tolist()
    mirrored = torch.rand(count, generator=generator).tolist()
    changed = []
    for image, (down, right), chance in zip(padded, shifts, mirrored, strict=True):
        part = image[:, down : down + height, right : right + width]
        changed.append(part.flip(-1) if chance < 0.5 else part)
    stacked = torch.stack(changed)
    blurred = functional.avg_pool2d(stacked, 3, 1, 1, count_include_pad=False)
    share = torch.rand((count, 1, 1, 1), generator=generator).to(images)
    return stacked + share * (blurred - stacked)


@contextmanager
def _differentiable(module: torch.nn.Module) -> Iterator[None]:
    """Let all parameters of floats require gradients, which afterwards are as they were."""
    import torch

    before = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.grad = None  # else what is there would be added to, in place
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.enable_grad():
            yield
    finally:
        for parameter, required, gradient in before:
            parameter.grad = None
            parameter.requires_grad_(required)
            parameter.grad = gradient


def _on_gradient(name: str, add: Callable[[str, Any, Any], None]) -> Callable[..., None]:
    """Return a hook that calls `add` with the gradient at the output of a call of a layer."""

    def note_output(layer: Any, _: Any, __: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: add(name, layer, gradient)
            )

    return note_output


def float_output(result: Any) -> torch.Tensor:
    """Return the first tensor of floats in what a module returns, with gradients or not.

    Raises:
        InvalidModel: there is none.
    """
    import torch

    parts = result.values() if isinstance(result, Mapping) else result
    if isinstance(result, torch.Tensor):
        parts = (result,)
    for part in parts if isinstance(parts, Iterable) else ():
        if isinstance(part, torch.Tensor) and part.is_floating_point():
            return part
    raise InvalidModel("module", f"returns no tensor of floats, but {type(result).__name__}")


def judged_as(
    batch: Any, output: torch.Tensor, outputs: Outputs | None = None
) -> tuple[torch.Tensor, Outputs]:
    """Return the output of a batch, with classes last, and what it is of.

    `outputs`: what it is said to be; None: as of :class:`OutputGradients`.
    """
    targets = _targets_of(batch)
    output = _with_classes_last(output, targets)
    return output, outputs or _kind(targets, output)
