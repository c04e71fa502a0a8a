"""A network under test: what it is, what it is run on, and how it is judged.

Your own is a Python file with a function that returns one, `"FILE.py:FUNCTION"` in a plan:

    import numpy as np, torch
    from pathlib import Path
    from nnr_codec.experiments.subject import Subject

    def small(data: Path | None) -> Subject:
        def batches():
            with np.load(data / "test.npz") as test:
                yield torch.from_numpy(test["inputs"]), test["labels"]
        return Subject("small", lambda: torch.nn.Linear(4, 3), data / "small.npz", batches)

`data` is the folder that the user names (`--data`), if any. The file's own folder is on the path of
imports while the file is loaded, as it is for a script. Such a file runs as any program of yours:
take plans and subjects from people whom you trust.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.batches import Batch, thinned
from nnr_codec.experiments.measures.metrics import Metric, classification
from nnr_codec.user.code import load_function, naming_failures

if TYPE_CHECKING:
    import torch

__all__ = ["Subject", "find_subject", "ready_subjects"]

SubjectFunction = Callable[[Path | None], "Subject"]


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
        """Return the same, measured on every `stride`-th sample from the first, at most `limit`.

        Test sets are often sorted by class: then `stride` takes some of each class, and `limit`
        alone some classes. Calibration stays as it is.

        Raises:
            InvalidOptions: `stride` or `limit` is less than 1.
        """
        return replace(self, batches=thinned(self.batches, stride, limit))


def find_subject(
    name: str,
    data: Path | None = None,
    *,
    folder: Path | None = None,
    stride: int = 1,
    limit: int | None = None,
) -> Subject:
    """Return the subject called `name`: a ready one, or `"FILE.py:FUNCTION"`.

    Args:
        name: FILE.py is relative to `folder`.
        data: folder of models and data; see :mod:`nnr_codec.experiments.subjects` for what the
            ready ones look for in it.
        folder: that of the plan; the current one by default.
        stride: of the measured samples take every `stride`-th, from the first on.
        limit: take at most so many.

    Raises:
        InvalidOptions: there is no such subject, its file or function fails or returns something
            else, `data` lacks what it needs, or `stride` or `limit` is less than 1.
    """
    if ":" in name:
        make: SubjectFunction = load_function(name, "subject", folder)
    else:
        ready = ready_subjects()
        if name not in ready:
            known = ", ".join(ready)
            raise InvalidOptions("subject", f"no {name!r}; there are {known}, and FILE.py:FUNCTION")
        make = ready[name]
    with naming_failures(name, "subject"):
        subject = make(data)
    if not isinstance(subject, Subject):
        kind = type(subject).__name__
        raise InvalidOptions("subject", f"{name}: returns a {kind}, not a Subject")
    return subject.sampled(stride, limit)


def ready_subjects() -> dict[str, SubjectFunction]:
    """Return the functions of the ready subjects by name; each takes the folder of data.

    Raises:
        InvalidOptions: the extra `eval` is not installed.
    """
    try:
        from nnr_codec.experiments import subjects
    except ModuleNotFoundError as error:
        raise InvalidOptions(
            "subject", f"{error.name} is missing: install the extra eval"
        ) from error
    return dict(subjects.READY)
