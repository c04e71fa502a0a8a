"""Long training on images: resumable at any step, and the same whether it was interrupted or not.

What a step sees depends on its number and the seed alone, so that a state on disk needs no more
than the module, the optimizer and the step. On a CPU with as many threads the results are the same
to the bit. Convolutions and products run in bfloat16 on processors that have instructions for it,
which takes half of the time there, and ten times as long elsewhere; weights, gradients and the
optimizer stay float32. So results differ between kinds of processors.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_SAVE_SECONDS = 60.0
_FAR_APART = 1_640_531_527
"""Of the seeds of two runs: what one of them draws does not come again in the other."""

Loss = Callable[[torch.Tensor, Any], torch.Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: a cosine that falls to 0.

    Attributes:
        steps: in all, of one batch each.
        learning_rate: the first.
        weight_decay: of all parameters.
        batch: images of a step.
        seed: of the order and of how images are moved and mirrored.
        shift: pixels by which images are moved at most, zeros coming in.
        mirrors: whether every other image is mirrored.
    """

    steps: int
    learning_rate: float
    weight_decay: float = 5e-4
    batch: int = 128
    seed: int = 0
    shift: int = 4
    mirrors: bool = True


def sgd(parameters: Iterable[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """Return SGD with momentum and weight decay."""
    rate, decay = schedule.learning_rate, schedule.weight_decay
    return torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True, weight_decay=decay)


MakeOptimizer = Callable[[Iterable[nn.Parameter], Schedule], torch.optim.Optimizer]


def train_resumably(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    schedule: Schedule,
    state: Path | None,
    *,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    loss: Loss = functional.cross_entropy,
    teacher: nn.Module | None = None,
    taught: dict[int, torch.Tensor] | None = None,
    make_optimizer: MakeOptimizer = sgd,
    after_step: Callable[[int], object] = lambda steps: None,
    minutes: float = math.inf,
) -> bool:
    """Train until the end of the schedule or of the time; return whether it is the schedule's.

    Args:
        module: in place, on any device.
        images: (images, channels, height, width), of any type.
        labels: int64 (images,).
        schedule: what a run is; the state of another one is not taken up.
        state: a file, which is taken up if it is there and written now and then; None: nothing is
            kept.
        prepare: makes of moved images, float32, what the module takes.
        loss: of outputs and labels; with a teacher, of outputs and a pair (labels, its outputs).
        teacher: a network in evaluation mode that runs on each image as well.
        taught: outputs of the teacher, on the CPU, by the steps before which there were as many;
            those of other steps are added. What a step sees depends on the seed and its number, not
            on how many follow.
        make_optimizer: of parameters, by the schedule.
        after_step: called after each step with how many there have been, of earlier runs as well.
        minutes: from now on.
    """
    device = next(module.parameters()).device
    optimizer = make_optimizer(module.parameters(), schedule)
    step = _taken_up(state, schedule, module, optimizer)
    end, saved = time.monotonic() + 60 * minutes, time.monotonic()
    module.train().to(memory_format=torch.channels_last)
    while step < schedule.steps and time.monotonic() < end:
        for group in optimizer.param_groups:
            group["lr"] = (
                schedule.learning_rate * (1 + math.cos(math.pi * step / schedule.steps)) / 2
            )
        chosen = _batch(len(images), schedule, step)
        inputs = prepare(_altered(images[chosen].float(), schedule, step)).to(device)
        targets: Any = labels[chosen].to(device)
        if teacher is not None:
            targets = targets, _taught(teacher, inputs, step, {} if taught is None else taught)
        value = loss(_outputs(module, inputs), targets)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        after_step(step)
        if time.monotonic() - saved > _SAVE_SECONDS:
            _save(state, schedule, module, optimizer, step)
            saved = time.monotonic()
            name, now = state.stem if state else "training", float(value.detach())
            print(f"{name}: step {step} of {schedule.steps}, loss {now:.3f}", flush=True)
    _save(state, schedule, module, optimizer, step)
    module.eval().to(memory_format=torch.contiguous_format)
    return step == schedule.steps


def _taught(
    teacher: nn.Module, inputs: torch.Tensor, step: int, known: dict[int, torch.Tensor]
) -> torch.Tensor:
    """Return the teacher's outputs in a step, from what is known if they are there."""
    if step not in known:
        with torch.no_grad():
            known[step] = _outputs(teacher, inputs).cpu()
    return known[step].to(inputs.device)


@cache
def _has_bfloat16(device: str) -> bool:
    """Return whether products in bfloat16 are the faster ones on this machine."""
    if device != "cpu":
        return True
    # Releases of torch that cannot say it are taken for processors that have none.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _outputs(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    device = inputs.device.type
    with torch.autocast(device, torch.bfloat16, enabled=_has_bfloat16(device)):
        outputs: torch.Tensor = module(inputs.contiguous(memory_format=torch.channels_last))
    return outputs.float()


def _batch(count: int, schedule: Schedule, step: int) -> torch.Tensor:
    """Return the indices of a step's images."""
    epoch, place = divmod(step, max(1, count // schedule.batch))
    generator = torch.Generator().manual_seed(_mixed(schedule.seed, epoch))
    order = torch.randperm(count, generator=generator)
    return order[place * schedule.batch : (place + 1) * schedule.batch]


def _mixed(seed: int, number: int) -> int:
    """Return a seed of 31 bits: torch's generators take no more than 32 of a larger one."""
    return (_FAR_APART * seed + number) % 2**31


def _altered(images: torch.Tensor, schedule: Schedule, step: int) -> torch.Tensor:
    """Return images as a step sees them: moved by some pixels, every other one mirrored."""
    generator = torch.Generator().manual_seed(2**31 + _mixed(schedule.seed, step))
    shifted = moved(images, schedule.shift, generator)
    share = 0.5 if schedule.mirrors else 0.0
    mirrored = torch.rand(len(images), generator=generator) < share
    return torch.where(mirrored.view(-1, 1, 1, 1), shifted.flip(3), shifted)


def moved(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Return images (images, channels, height, width), each moved by up to `most` pixels, zeros
    coming in."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (most,) * 4)
    places = torch.randint(2 * most + 1, (count, 2), generator=generator)
    return torch.stack([
        image[:, y : y + height, x : x + width]
        for image, (y, x) in zip(padded, places.tolist(), strict=True)
    ])  # fmt: skip


def _taken_up(
    state: Path | None, schedule: Schedule, module: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Load a state, if there is one of this schedule; return the steps that it has behind it."""
    if state is None or not state.exists():
        return 0
    device = next(module.parameters()).device
    found: Any = torch.load(state, map_location=device, weights_only=True)
    if found["schedule"] != repr(schedule):
        return 0
    module.load_state_dict(found["module"])
    optimizer.load_state_dict(found["optimizer"])
    return int(found["step"])


def _save(
    state: Path | None,
    schedule: Schedule,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    if state is None:
        return
    state.parent.mkdir(parents=True, exist_ok=True)
    partial = state.with_name(state.name + ".partial")
    torch.save(
        {
            "schedule": repr(schedule),
            "step": step,
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        partial,
    )
    os.replace(partial, state)
