"""Fine-tuning of a user's module on batches. Needs the extra `torch`.

Random numbers are the user's: seed torch, and the results are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InvalidModel, InvalidOptions
from ..user.module import apply, in_mode, inputs_of
from .teacher import Distillation

if TYPE_CHECKING:
    import torch


def fine_tune(
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], torch.Tensor] | None,
    *,
    steps: int,
    distillation: Distillation | None = None,
    after_step: Callable[[], object] | None = None,
) -> list[float]:
    """Make `steps` steps of `optimizer` on `module`, in training mode; return the losses.

    Args:
        module: factored layers or not; each part is in its previous mode again afterwards.
        optimizer: of the module's parameters.
        batches: pairs (inputs, targets), iterated again and again. Inputs are a tensor, a tuple
            of the module's arguments, or a dict of those by keyword.
        loss: of outputs and targets; a scalar. None: that of the distillation is all, and batches
            may be inputs alone.
        steps: batches to train on.
        distillation: its loss is added: the module learns from a teacher as well.
        after_step: called after each step: a schedule, or `LowRankProjection.step`, or both.

    Raises:
        InvalidModel: the loss is not finite; or the teacher shares what is trained, or has outputs
            of another shape.
        InvalidOptions: `batches` end before `steps` and cannot be iterated again, or there is
            neither a loss nor a distillation.
    """
    if distillation is not None:
        distillation.check_student(module)
    elif loss is None:
        raise InvalidOptions("loss", "is None, and there is no distillation")
    losses: list[float] = []
    supply = endless(batches)
    with in_mode(module, training=True):
        for step in range(steps):
            batch = next(supply)
            outputs = apply(module, inputs_of(batch))
            value: Any = 0.0
            if loss is not None:
                value = loss(outputs, _targets(batch))
            if distillation is not None:
                value = value + distillation.loss(batch, outputs)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                raise InvalidModel("loss", f"is {losses[-1]} in step {step} of training")
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if after_step is not None:
                after_step()
    return losses


def _targets(batch: Any) -> Any:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        kind = type(batch).__name__
        raise InvalidOptions("batches", f"a batch is a {kind}, and no pair (inputs, targets)")
    return batch[1]


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches again and again.

    Raises:
        InvalidOptions: they end, and cannot be iterated again.
    """
    count = 0
    while True:
        before = count
        for batch in batches:
            count += 1
            yield batch
        if count == before:
            raise InvalidOptions("batches", f"there are no more after {count}")
