"""What is known of the network that a model belongs to, beside its tensors."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration.moments import Calibration
from .corrections.corrected_stream import Corrector
from .targets.measures import Evaluate


@dataclass(frozen=True)
class Known:
    """What samples tell of a network. None: it is not known, or not wanted.

    Attributes:
        calibration: moments of its layers.
        evaluate: of decoded arrays by name, for the targets of divergence and drop.
        corrector: corrects weights and vectors of the stream that is kept; not for the target
            `max_nmse`, as that bounds how far tensors are from those of the model.
    """

    calibration: Calibration | None = None
    evaluate: Evaluate | None = None
    corrector: Corrector | None = None


UNKNOWN = Known()
