"""A network under test: what it is, what it is run on, and how it is judged.

How plans name one, and what a user's function may return: `subject_source`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnr_codec.experiments.batches import Batch, thinned
from nnr_codec.experiments.measures.metrics import Metric, classification

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Subject:
    """A network under test and how it is judged.

    Attributes:
        name: what it is called in results.
        module: returns a new torch module, whatever its weights: the checkpoint's tensors are
            loaded into it, by the names of its state dict. It returns a tensor (samples, ...).
        checkpoint: what is encoded: any model file that the codec reads.
        batches: returns the measured samples, in a fixed order, as batches (inputs, targets).
            Inputs are a tensor, or a tuple of those that the module takes; targets are what the
            metric compares outputs with: tensors, arrays or None. Samples are along the first
            dimension.
        metric: what outputs are worth.
        calibration: like `batches`, for tools that look at data; never the measured samples.
    """

    name: str
    module: Callable[[], torch.nn.Module]
    checkpoint: Path
    batches: Callable[[], Iterable[Batch]]
    metric: Metric = classification
    calibration: Callable[[], Iterable[Batch]] | None = None

    def sampled(self, stride: int = 1, limit: int | None = None) -> Subject:
        """Return the same, measured on the samples that `thinned` leaves.

        Test sets are often sorted by class: then `stride` takes some of each class, and `limit`
        alone some classes. Calibration stays as it is.
        """
        return replace(self, batches=thinned(self.batches, stride, limit))
