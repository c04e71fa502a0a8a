"""Work on a model's tensors by the workers of an executor: who reads them, and how many wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Protocol, Self, TypeVar

from ..support.ordered_calls import has_threads, ordered_results

_BYTES_PER_ELEMENT = 12
"""What work on an element holds: its value, its integer, and what decoders make of that."""


class TensorTask(Protocol):
    """What a worker does to a few tensors in one call."""

    @property
    def elements(self) -> int:
        """Number of the tensors' elements."""

    def loaded(self) -> Self:
        """Return the task with the values of its tensors in memory."""


S = TypeVar("S", bound=TensorTask)
T = TypeVar("T")


def results_of(
    executor: Executor | None, function: Callable[[S], T], tasks: Iterable[S]
) -> Iterator[T]:
    """Yield `function` of each task in order, with an executor a few tasks ahead.

    Threads read the tensors by themselves. To other workers, which cannot have the open file, the
    values are sent, and `function` with all that is bound to it.
    """
    is_sent = executor is not None and not has_threads(executor)
    arguments = (
        (_BYTES_PER_ELEMENT * task.elements, task.loaded if is_sent else lambda task=task: task)
        for task in tasks
    )
    return ordered_results(executor, function, arguments)
