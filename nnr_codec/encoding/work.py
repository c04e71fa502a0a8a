"""How an encoding is worked on, and who is told of it: what it makes does not depend on either."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from ..report import OnStage, Stage, TensorReport


@dataclass(frozen=True)
class Work:
    """What all steps of an encoding are given.

    Attributes:
        executor: works on tensors side by side; None: one after the other.
        progress: called with the report of each tensor that is coded.
        on_stage: called when something is done to tensors, with the number of their elements.
    """

    executor: Executor | None = None
    progress: Callable[[TensorReport], object] | None = None
    on_stage: OnStage | None = None

    def tell(self, stage: Stage, elements: int) -> None:
        """Say that a stage is done."""
        if self.on_stage is not None:
            self.on_stage(stage, elements)

    def tell_coded(self, report: TensorReport) -> None:
        """Say that a tensor is coded."""
        if self.progress is not None:
            self.progress(report)


UNWATCHED = Work()
"""One tensor after the other, and nobody is told."""
