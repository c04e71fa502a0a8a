"""What a plan's function that trains a network is given, and what it returns.

In a plan, ``codec = "trained"`` names a function of a file of yours::

    [[method]]
    name = "fine-tuned"
    codec = "trained"
    options = { train = "my_training.py:fine_tuned", epochs = 4 }
    points = { ratio = [2, 4] }
    grid = { seed = [0, 1, 2] }

It is called with a `TrainingRun`, and with all other options by keyword, and returns the bitstream
of the network that it has trained::

    def fine_tuned(run, *, epochs, ratio):
        torch.manual_seed(run.seed)
        ...                                  # of run.module
        return nnr_codec.encode(run.module).data

Its tensors, decoded to dense weights, are those of the subject's module. For weights in factors:
``encode(dense_state(module), factorizations=factored_weights(module))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .subject import Subject

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainingRun:
    """A network that is to be trained.

    Attributes:
        subject: the network, and how it is judged; `subject.calibration` are samples that one may
            look at, the measured ones are not for training.
        module: a new one with the checkpoint's tensors, in evaluation mode.
        data: folder of models and data, if there is one.
        seed: of whatever draws numbers.
        state: a file, which need not exist, for what a run that was interrupted goes on from; it is
            removed when the cell is kept. None: nothing is kept.
    """

    subject: Subject
    module: torch.nn.Module
    data: Path | None
    seed: int
    state: Path | None
