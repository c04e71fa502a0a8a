"""Feedback of errors that waits in a temporary file, where that of all tensors is too much."""

from __future__ import annotations

from dataclasses import dataclass

from ..support.spilled import SpilledArray, SpillFile
from .feedback import ErrorFeedback


@dataclass(frozen=True, slots=True)
class SpilledFeedback:
    """An `ErrorFeedback` whose arrays are in a file.

    Attributes:
        left: as of the feedback.
        columns, column_weights, rows, row_weights: its arrays.
    """

    left: float
    columns: SpilledArray
    column_weights: SpilledArray
    rows: SpilledArray | None
    row_weights: SpilledArray | None

    def read(self) -> ErrorFeedback:
        """Return the feedback; OSError if the file cannot be read."""
        return ErrorFeedback(
            self.columns.read(),
            self.column_weights.read(),
            None if self.rows is None else self.rows.read(),
            None if self.row_weights is None else self.row_weights.read(),
            self.left,
        )


def spilled(feedback: ErrorFeedback, file: SpillFile) -> SpilledFeedback:
    """Write a feedback to a file; OSError if it cannot be written."""
    return SpilledFeedback(
        feedback.left,
        file.put(feedback.columns),
        file.put(feedback.column_weights),
        None if feedback.rows is None else file.put(feedback.rows),
        None if feedback.row_weights is None else file.put(feedback.row_weights),
    )
