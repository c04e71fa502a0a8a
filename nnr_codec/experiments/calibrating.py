"""Second moments of a subject's layers, for methods that look at data."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from nnr_codec.calibration.calibrate import calibrate
from nnr_codec.calibration.moments import Calibration
from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.batches import thinned
from nnr_codec.experiments.evaluation import trained_module
from nnr_codec.experiments.fingerprints import file_digest
from nnr_codec.experiments.subject_source import find_subject


def calibration_of(source: str, data: Path | None, stride: int) -> Calibration:
    """Return the moments of a subject's uncompressed network; those of the last call are kept.

    Args:
        source: ``FILE.py:FUNCTION``, or the name of a torchvision network.
        data: folder of models and data.
        stride: every `stride`-th calibration sample is looked at.

    Raises:
        InvalidOptions: there is no such subject, or it has no samples to calibrate with.
        InvalidModel: its tensors do not fit its module, or a layer's input is not finite.
    """
    subject = find_subject(source, data)
    return _moments(source, data, stride, file_digest(subject.checkpoint))


@lru_cache(maxsize=1)
def _moments(source: str, data: Path | None, stride: int, checkpoint_digest: str) -> Calibration:
    """The digest is there so that a checkpoint that has changed is looked at again."""
    subject = find_subject(source, data)
    if subject.calibration is None:
        raise InvalidOptions("calibration_stride", f"{subject.name} has no calibration samples")
    return calibrate(trained_module(subject), thinned(subject.calibration, stride, None)())
