"""CP of trained kernels by plain ALS and by ours: errors, and what quantization does to them.

    python -m conformance.cp_stability [--model FILE] [--kernels NAME …] [--shares SHARE …] [--json]

Each kernel is decomposed at ranks that keep some shares of its parameters, by tensorly's ALS
(`parafac`, from its SVD and from random numbers) and by `nnr_codec.decompose`. A row has the
relative squared error of the kernel; the norm of the largest rank-one term over the kernel's;
the sensitivity, over the kernel's squared norm; and the relative squared error when every factor,
its terms' norms spread evenly, has 15 uniform steps up to its largest magnitude (5 bits).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from tensorly.decomposition import parafac

from conformance.studies.figures import argument_parser, as_table
from nnr_codec.decompose.algorithms.cp import cp
from nnr_codec.decompose.algorithms.cp_terms import sensitivity
from nnr_codec.decompose.algorithms.kernel import relative_error
from nnr_codec.decompose.ranks.rank_options import rank_of_fraction
from nnr_codec.factorization.forms import CP

Factors = list[npt.NDArray[np.float64]]

MODEL = Path(__file__).parent / "models" / "digits_cnn.safetensors"
KERNELS = ("conv2.weight", "conv3.weight")
SHARES = (0.1, 0.25, 0.5)
STEPS = 15
SWEEPS = 400
"""Of plain ALS: enough for its terms to grow."""

METHODS = ("ALS from SVD", "ALS from random", "ours")
COLUMNS = ("kernel", "rank", "method", "error", "largest term", "sensitivity", "error in 5 bits")


def factors_of(kernel: npt.NDArray[np.float64], rank: int, method: str) -> Factors:
    """Return the factors by one of METHODS."""
    if method == "ours":
        return [factor.astype(np.float64) for factor in cp(kernel, rank).factors]
    start = "svd" if method == "ALS from SVD" else "random"
    return plain_als(kernel, rank, start, SWEEPS, 1e-10)


def plain_als(
    kernel: npt.NDArray[np.float64], rank: int, start: Any, sweeps: int, tolerance: float
) -> Factors:
    """Return tensorly's factors; `start` is its `init`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of fewer vectors than terms in its start
        weights, factors = parafac(
            kernel, rank, n_iter_max=sweeps, init=start, tol=tolerance, random_state=0
        )
    return [factors[0] * weights, *factors[1:]]


def evenly_spread(factors: Factors) -> Factors:
    """Give the vectors of each term one norm."""
    norms = [np.linalg.norm(factor, axis=0) for factor in factors]
    level = np.prod(norms, axis=0) ** (1 / len(factors))
    return [f * (level / np.maximum(n, 1e-300)) for f, n in zip(factors, norms, strict=True)]


def measured(kernel: npt.NDArray[np.float64], factors: Factors) -> dict[str, float]:
    """Return the figures of a row."""
    even = evenly_spread(factors)
    steps = [np.abs(factor).max() / STEPS for factor in even]
    quantized = [np.round(f / step) * step for f, step in zip(even, steps, strict=True)]
    energy = float(np.vdot(kernel, kernel))
    terms = np.prod([np.linalg.norm(factor, axis=0) for factor in even], axis=0)
    return {
        "error": relative_error(kernel, CP(kernel.shape, tuple(even)).to_dense()),
        "largest term": float(terms.max()) / energy**0.5,
        "sensitivity": sensitivity(even) / energy,
        "error in 5 bits": relative_error(kernel, CP(kernel.shape, tuple(quantized)).to_dense()),
    }


def rows(model: Path, kernels: Sequence[str], shares: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Yield a row for each kernel, rank and method."""
    weights = load_file(model)
    for name in kernels:
        kernel = weights[name].astype(np.float64)
        for share in shares:
            rank = rank_of_fraction(CP, kernel.shape, share, name)
            for method in METHODS:
                figures = measured(kernel, factors_of(kernel, rank, method))
                yield {"kernel": name, "rank": rank, "method": method, **figures}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="safetensors; our own by default")
    parser.add_argument("--kernels", nargs="+", default=KERNELS)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="0 to 1")
    given = parser.parse_args()
    figures = list(rows(given.model, given.kernels, given.shares))
    print(json.dumps(figures, indent=2) if given.json else as_table(COLUMNS, figures))


if __name__ == "__main__":
    main()
