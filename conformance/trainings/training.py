"""The training that all methods share: Adam, at a rate that falls to 0, by a teacher if wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from conformance.trainings.resumable import Schedule, train_resumably
from conformance.trainings.sets import training_set
from nnr_codec.experiments.training_run import TrainingRun
from nnr_codec.support.digest import digest

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DISTILLED = 0.9
"""Of the loss, what is the divergence from the teacher; the rest is that from the labels."""


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
        steps: of Adam, of a batch each; of the digits networks `digits_steps`.
        learning_rate: the first.
        teacher: whether there is one; without it the labels alone are what is learned.
    """

    steps: int
    digits_steps: int = 300
    learning_rate: float = 1e-3
    teacher: bool = True

    def steps_of(self, run: TrainingRun) -> int:
        """Return how many there are for this network."""
        return self.digits_steps if training_set(run).is_digits else self.steps

    def in_parts(self, run: TrainingRun, parts: int) -> Callable[[nn.Module], None]:
        """Return what trains a module by the next part of the steps each time it is called, on
        images that the other parts have not seen in this order."""
        numbers = iter(range(parts))

        def train(module: nn.Module) -> None:
            number = next(numbers)
            steps = self.steps_of(run)
            own = steps * (number + 1) // parts - steps * number // parts
            part = replace(self, steps=own, digits_steps=own)
            part(replace(run, seed=run.seed * parts + number), module)

        return train

    def __call__(
        self,
        run: TrainingRun,
        module: nn.Module,
        *,
        wrap: Callable[[Any], Any] = lambda loss: loss,
        after_step: Callable[[int], object] = lambda steps: None,
    ) -> None:
        """Train `module`; `wrap` makes another loss of the loss."""
        known = training_set(run)
        schedule = Schedule(
            self.steps_of(run),
            self.learning_rate,
            batch=known.batch,
            seed=run.seed,
            shift=known.shift,
            mirrors=known.mirrors,
        )
        train_resumably(
            module.to(DEVICE),
            known.images,
            known.labels,
            schedule,
            run.state,
            prepare=known.prepare,
            loss=wrap(distilled if self.teacher else functional.cross_entropy),
            teacher=run.module.to(DEVICE) if self.teacher else None,
            taught=_taught_by(run, schedule) if self.teacher else None,
            make_optimizer=_adam,
            after_step=after_step,
        )
        module.cpu()
        run.module.cpu()


def distilled(outputs: torch.Tensor, targets: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the loss of outputs against labels, and against a teacher's outputs."""
    labels, expected = targets
    divergence = functional.kl_div(
        outputs.log_softmax(1), expected.log_softmax(1), reduction="batchmean", log_target=True
    )
    return DISTILLED * divergence + (1 - DISTILLED) * functional.cross_entropy(outputs, labels)


def _adam(parameters: Iterable[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, schedule.learning_rate)


_taught: dict[Any, dict[int, torch.Tensor]] = {}


def _taught_by(run: TrainingRun, schedule: Schedule) -> dict[int, torch.Tensor]:
    """Return the outputs by step, to be added to, of the dense network in all trainings that see
    the same images in the same order: it takes a quarter of a step. The last of these are kept."""
    state = run.module.state_dict()
    teacher = digest((name, values.cpu().numpy()) for name, values in state.items())
    key = teacher, run.data, replace(schedule, steps=0, learning_rate=0.0)
    if key not in _taught:
        _taught.clear()
    return _taught.setdefault(key, {})


T = TypeVar("T")
_last: dict[str, Any] = {}
_one_trains = threading.Lock()


def last_trained(key: str, train: Callable[[], T]) -> T:
    """Return what was trained last, if that was by the same key; else train. Threads that want the
    same wait for it.

    It is here, as files that a plan names are executed anew for each cell.
    """
    with _one_trains:
        if key not in _last:
            _last.clear()
            _last[key] = train()
        made: T = _last[key]
        return made
