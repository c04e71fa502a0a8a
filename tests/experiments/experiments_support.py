"""What the tests of core experiments share: a network that is small enough to be run often."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnr_codec.checkpoints import save_checkpoint

SUBJECT = '''
"""A linear classifier of random points, its labels its own answers but for some."""
import time
from pathlib import Path
import numpy as np
import torch
from nnr_codec.experiments.subject import Subject

HERE = Path(__file__).parent

def batches():
    rng = np.random.default_rng(1)
    points = rng.normal(0, 1, (200, 24)).astype(np.float32)
    labels = rng.integers(0, 4, 200)
    pause = HERE / "pause"
    if pause.exists():
        time.sleep(float(pause.read_text()))
    yield torch.from_numpy(points), labels

def linear(data):
    return Subject("linear", lambda: torch.nn.Linear(24, 4), HERE / "linear.safetensors", batches)

def unfit(data):
    network = lambda: torch.nn.Sequential(torch.nn.Linear(24, 4))  # whose names are others
    return Subject("unfit", network, HERE / "linear.safetensors", batches)

def needy(data):
    return Subject("needy", lambda: torch.nn.Linear(24, 4), data / "absent.npz", batches)
'''

PLAN = """
title = "A <small> plan"
anchor = "uniform"
resamples = 50

[[subject]]
source = "subjects.py:linear"

[[method]]
name = "uniform"
codec = "nnr"
options = { dq = false }
points = { qp = [-24, -16, -8] }

[[method]]
name = "integers"
codec = "int8"
points = { bits = [8, 4] }
"""


def save_plan(folder: Path, text: str = PLAN) -> Path:
    """Write a plan, its subjects and their checkpoint; return the plan's path."""
    rng = np.random.default_rng(0)
    (folder / "subjects.py").write_text(SUBJECT)
    save_checkpoint(
        folder / "linear.safetensors",
        {
            "weight": rng.normal(0, 0.3, (4, 24)).astype(np.float32),
            "bias": rng.normal(0, 0.3, 4).astype(np.float32),
        },
        overwrite=True,
    )
    path = folder / "plan.toml"
    path.write_text(text)
    return path
