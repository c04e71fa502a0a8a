"""A small model of two layers and integers, whose size and error are searched."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


def two_layers() -> Arrays:
    """Return the model, always the same."""
    rng = np.random.default_rng(8)
    return {
        "a.weight": rng.laplace(0, 0.05, (120, 60)).astype(np.float32),
        "a.bias": rng.normal(0, 0.1, 120).astype(np.float32),
        "b.weight": rng.laplace(0, 0.02, (40, 120)).astype(np.float32),
        "steps": np.arange(300),
    }
