"""What is learned of a module from batches of samples: moments of its layers, what judges a stream
of it, and what corrects one. Needs the extra `torch`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..calibration.calibrate import calibrate
from ..calibration.gradients import OutputGradients
from ..calibration.held_back import HoldBack, KeptBatches
from ..calibration.moments import Calibration
from ..options import EncodeOptions
from ..user.module import as_it_was
from .corrections import Corrections

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Learned:
    """What is learned of a module.

    Attributes:
        calibration: moments of its layers.
        corrections: of weights and vectors; None: they are not wanted.
        held_back: batches that neither knows, by which a target of divergence is measured; None:
            none were to be held back.
    """

    calibration: Calibration
    corrections: Corrections | None
    held_back: Sequence[Any] | None


def learn(
    module: torch.nn.Module,
    batches: Iterable[Any],
    options: EncodeOptions,
    *,
    settings: Mapping[str, Any] | None = None,
    of_inputs: bool = False,
    hold_back: bool = False,
    correct: bool = True,
    low_memory: bool = False,
) -> Learned:
    """Run a module over batches, after which it is as it was.

    Args:
        module: the original network.
        batches: inputs, or pairs (inputs, targets).
        options: of the encoder.
        settings: the user's `perturb`, `loss` and `outputs`.
        of_inputs: whether moments of the layers' inputs are wanted though nothing is decomposed.
        hold_back: whether some batches are for a target of divergence alone.
        correct: whether corrections are made, if the options want them.
        low_memory: as of :func:`~nnr_codec.calibration.calibrate.calibrate`.

    Raises:
        InvalidOptions: there are too few samples, or a setting is unknown.
        InvalidModel: the module cannot be run on them.
    """
    held = HoldBack(batches) if hold_back else None
    kept = KeptBatches(batches if held is None else held)
    gradients = OutputGradients.by_settings(module, settings or {})
    only = None if of_inputs or options.decomposes else ()
    with as_it_was(module):
        known = calibrate(module, kept, only=only, gradients=gradients, low_memory=low_memory)
    corrections = None
    if correct and options.corrects:
        corrections = Corrections.by_options(options, module, kept.batches, settings)
    return Learned(known, corrections, None if held is None else held.held())
