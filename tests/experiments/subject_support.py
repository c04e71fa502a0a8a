"""What the tests of subjects share: tiny subjects, and where models and data are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.experiments.measures.metrics import Classification
from nnr_codec.experiments.subject import Subject

torch = pytest.importorskip("torch")  # whoever imports this module needs it, and is skipped

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "conformance" / "models"
SUBJECTS = ROOT / "conformance" / "subjects"
DATA = Path(os.environ.get("NNR_SHARED", ROOT.parent / "shared")) / "data"

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="NNR_SHARED names no folder with data/models and data/datasets"
)


def tensors_of(subject: Subject) -> dict[str, np.ndarray]:
    """Return what the subject's checkpoint holds."""
    with open_checkpoint(subject.checkpoint) as model:
        return dict(model.arrays())


def linear_tensors() -> dict[str, np.ndarray]:
    """Return tensors of a linear layer from 4 to 3."""
    rng = np.random.default_rng(1)
    return {
        "weight": rng.normal(size=(3, 4)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
    }


def subject(
    module: Callable[[], torch.nn.Module] = lambda: torch.nn.Linear(4, 3),
    batches: Callable[[], Iterable[Any]] | None = None,
) -> Subject:
    """Return a linear layer on seven samples, or something else."""
    return Subject(
        "small", module, Path("small.npz"), batches or seven_samples, Classification(tops=(1,))
    )


def inputs_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Return seven samples."""
    rng = np.random.default_rng(2)
    return rng.normal(size=(7, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2, 0])


def seven_samples() -> Iterable[Any]:
    """Yield them in batches of three, three and one."""
    inputs, labels = inputs_and_labels()
    for start in (0, 3, 6):
        yield torch.from_numpy(inputs[start : start + 3]), torch.from_numpy(labels)[start:][:3]


def logits(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return what the linear layer gives for the seven samples."""
    return inputs_and_labels()[0] @ tensors["weight"].T + tensors["bias"]
