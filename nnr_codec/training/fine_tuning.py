"""Fine-tuning of a user's module on batches. Needs the extra `torch`.

Random numbers are the user's: seed torch, and the results are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InvalidModel, InvalidOptions
from ..user.module import apply, in_mode

if TYPE_CHECKING:
    import torch


def fine_tune(
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], torch.Tensor],
    *,
    steps: int,
    after_step: Callable[[], object] | None = None,
) -> list[float]:
    """Make `steps` steps of `optimizer` on `module`, in training mode; return the losses.

    Args:
        module: factored layers or not; each part is in its previous mode again afterwards.
        optimizer: of the module's parameters.
        batches: pairs (inputs, targets), iterated again and again. Inputs are a tensor, a tuple
            of the module's arguments, or a dict of those by keyword.
        loss: of outputs and targets; a scalar.
        steps: batches to train on.
        after_step: called after each step: a schedule, or `LowRankProjection.step`, or both.

    Raises:
        InvalidModel: the loss is not finite.
        InvalidOptions: `batches` end before `steps` and cannot be iterated again.
    """
    losses: list[float] = []
    supply = _endless(batches)
    with in_mode(module, training=True):
        for step in range(steps):
            inputs, targets = next(supply)
            value: Any = loss(apply(module, inputs), targets)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                raise InvalidModel("loss", f"is {losses[-1]} in step {step} of training")
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if after_step is not None:
                after_step()
    return losses


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    count = 0
    while True:
        before = count
        for batch in batches:
            count += 1
            yield batch
        if count == before:
            raise InvalidOptions("batches", f"there are no more after {count}")
