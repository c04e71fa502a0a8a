"""Kernels, models, moments, options and measures that the tests of decomposition share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.decompose import Decomposition, decompose_model
from nnr_codec.factorization.forms import CP, HT2, FactoredWeight, LowRank, Tucker2
from nnr_codec.model import Model
from nnr_codec.options import DecompositionOptions

Array = npt.NDArray[Any]
MODEL = Path(__file__).parents[2] / "conformance" / "models" / "digits_cnn.safetensors"
RESIDUAL = MODEL.with_name("digits_residual.safetensors")
ONE_LAYER: list[type[FactoredWeight]] = [LowRank, CP, Tucker2, HT2]


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


def options(method: str = "none", overrides: Any = (), **values: Any) -> EncodeOptions:
    own = {k: values.pop(k) for k in list(values) if hasattr(EncodeOptions(), k)}
    return EncodeOptions(
        decomposition=DecompositionOptions(method, **values),  # type: ignore[arg-type]
        overrides=overrides,
        **own,
    )


def decomposed(arrays: Mapping[str, Any], method: str = "none", **values: Any) -> Decomposition:
    return decompose_model(Model.from_arrays(arrays), options(method, **values))


def layers(**shapes: tuple[int, ...]) -> dict[str, Array]:
    """Return a first layer and weights of these shapes."""
    first = {"first": random_kernel((8, 3, 3, 3), seed=99)}
    return first | {n: random_kernel(s, seed) for seed, (n, s) in enumerate(shapes.items())}


def forms(found: Decomposition) -> dict[str, str]:
    return {name: weight.form for name, weight in found.factorizations.items()}


def near_low_rank(rows: int = 96, columns: int = 80, rank: int = 6) -> Array:
    rng = np.random.default_rng(0)
    product = rng.normal(0, 0.3, (rows, rank)) @ rng.normal(0, 0.3, (rank, columns))
    return (product + rng.normal(0, 1e-4, (rows, columns))).astype(np.float32)


STAGES = layers(
    **{f"layer{s}.{i}.conv": (16, 16, 3, 3) for s in (1, 2) for i in range(3)}, fc=(10, 16)
)


def mixed_layers() -> dict[str, Array]:
    """Return weights of which one is near a low rank, and others are not."""
    return {
        "first.weight": random_kernel((16, 12)),
        "low.weight": near_low_rank(),
        "low.bias": random_kernel((96,)),
        "full.weight": random_kernel((24, 96), 1),
        "kernel.weight": random_kernel((16, 12, 3, 3), 2),
    }


def parameters_of_stream(data: bytes, tmp_path: Any) -> tuple[int, int]:
    """Return how many elements a stream's model has, and how many parameters it is coded as."""
    path = tmp_path / "s.nnr"
    path.write_bytes(data)
    with nnr_codec.open(path) as stream:
        info = stream.info()
    return info.elements, info.parameters
