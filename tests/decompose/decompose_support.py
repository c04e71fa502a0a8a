"""Kernels, moments and measures that the tests of decomposition share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

Array = npt.NDArray[Any]
MODEL = Path(__file__).parents[2] / "conformance" / "models" / "digits_cnn.safetensors"


def trained_kernel(name: str = "conv3.weight") -> Array:
    """Return a kernel of our own trained network."""
    return load_file(MODEL)[name]


def random_kernel(shape: Sequence[int], seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 0.1, tuple(shape)).astype(np.float32)


def random_moment(size: int, seed: int = 0, samples: int | None = None) -> Array:
    """Return the second moment of correlated inputs of falling variance and positive mean."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size)) / size**0.5 * np.linspace(1, 0.05, size)[:, None]
    inputs = np.abs(rng.normal(size=(samples or 4 * size, size)) @ mixing)
    return np.asarray(inputs.T @ inputs / len(inputs))


def relative_error(weight: Array, approximation: Array, moment: Array | None = None) -> float:
    """Return the norm of the error over that of the weight, both times moment^½ if given."""
    rows = len(weight)
    difference = np.subtract(weight, approximation, dtype=np.float64).reshape(rows, -1)
    matrix = weight.reshape(rows, -1).astype(np.float64)
    norm = np.eye(matrix.shape[1]) if moment is None else moment
    squares = [np.vdot(part, part @ norm) for part in (difference, matrix)]
    return float(max(squares[0], 0) / squares[1]) ** 0.5


def in_8_bits(factors: Sequence[Array]) -> list[Array]:
    """Return the factors quantized uniformly, 127 steps up to the largest magnitude of each."""
    steps = [np.abs(factor).max() / 127 for factor in factors]
    return [np.round(f / step) * step for f, step in zip(factors, steps, strict=True)]
