"""The algorithms of decomposition by tensorly and scipy and by ours: errors and times.

    python -m conformance.decomposition_libraries [MODEL.safetensors …] [--json]

Of each model, by default our own small ones, a kernel of several taps and a matrix (or an unfolded
kernel), both of middle size, are decomposed; CP and Tucker-2 to half of the channels and of the
parameters, matrices to a quarter of the rank. A row has the mean relative squared error, of CP the
mean sensitivity over the kernel's squared norm, and the processor's time for all of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from scipy.sparse.linalg import svds
from tensorly import cp_to_tensor, tenalg
from tensorly.decomposition import partial_tucker
from tensorly.tenalg.svd import randomized_svd, symeig_svd
from tensorly.tenalg.svd import truncated_svd as lapack_svd

from conformance.cp_stability import Factors, plain_als
from conformance.studies.figures import argument_parser, as_table
from nnr_codec.decompose.algorithms.cp import fit, sliced_start, stable_fit
from nnr_codec.decompose.algorithms.cp_terms import sensitivity
from nnr_codec.decompose.algorithms.kernel import relative_error
from nnr_codec.decompose.algorithms.svd import truncated_svd
from nnr_codec.decompose.algorithms.tucker import orthonormal_tucker2

Float64 = npt.NDArray[np.float64]

MODELS = sorted((Path(__file__).parent / "models").glob("*.safetensors"))
SWEEPS = 50
COLUMNS = ("algorithm", "by", "error", "sensitivity", "seconds")


def _product(svd: tuple[Float64, Float64, Float64]) -> Float64:
    left, singular, right = svd
    return left * singular @ right


def _tucker(kernel: Float64, tolerance: float) -> Float64:
    ranks = [size // 2 for size in kernel.shape[:2]]
    (core, bases), _ = partial_tucker(
        kernel, ranks, modes=[0, 1], tol=tolerance, n_iter_max=SWEEPS, random_state=0
    )
    return np.asarray(tenalg.multi_mode_dot(core, bases, modes=[0, 1]))


def _our_tucker(kernel: Float64) -> Float64:
    core, *bases = orthonormal_tucker2(kernel, [size // 2 for size in kernel.shape[:2]], "kernel")
    return np.asarray(tenalg.multi_mode_dot(core, bases, modes=[0, 1]))


def _rank(kernel: Float64) -> int:
    return max(kernel.size // (2 * sum(kernel.shape)), 1)


def _parafac(kernel: Float64, start: Any) -> Factors:
    return plain_als(kernel, _rank(kernel), start, SWEEPS, 1e-6)


def _our_start(kernel: Float64) -> Factors:
    return sliced_start(kernel, _rank(kernel))


MATRICES: dict[tuple[str, str], Callable[[Float64, int], Any]] = {
    ("truncated SVD", "tensorly (LAPACK)"): lapack_svd,
    ("truncated SVD", "tensorly (Gram matrix)"): symeig_svd,
    ("truncated SVD", "tensorly (randomized)"): lambda m, r: randomized_svd(m, r, random_state=0),
    ("truncated SVD", "scipy (Lanczos)"): lambda m, r: svds(m, r, v0=np.ones(min(m.shape))),
    ("truncated SVD", "ours"): truncated_svd,
}
KERNELS: dict[tuple[str, str], Callable[[Float64], Float64]] = {
    ("partial Tucker", "tensorly"): lambda kernel: _tucker(kernel, 1e-4),
    ("partial Tucker", "tensorly, tol 1e-6"): lambda kernel: _tucker(kernel, 1e-6),
    ("partial Tucker", "ours"): _our_tucker,
}
TERMS: dict[tuple[str, str], Callable[[Float64], Factors]] = {
    ("CP", "tensorly (SVD, ALS)"): lambda kernel: _parafac(kernel, "svd"),
    ("CP", "our start, tensorly's ALS"): lambda kernel: _parafac(
        kernel, (None, _our_start(kernel))
    ),
    ("CP", "our start and ALS"): lambda kernel: fit(kernel, _our_start(kernel), SWEEPS)[0],
    ("CP", "ours, stable"): lambda kernel: stable_fit(kernel, _rank(kernel)),
}


def weights_of(model: Path) -> tuple[list[Float64], list[Float64]]:
    """Return a model's kernel and matrix of middle size, or none where there is none."""
    weights = [w.astype(np.float64) for w in load_file(model).values() if w.ndim in (2, 4)]
    kernels = [w for w in weights if w.ndim == 4 and max(w.shape[2:]) > 1 and w.shape[1] > 3]
    matrices = [w.reshape(len(w), -1) for w in weights if w[0].size > 8 < len(w)]
    return _middle(kernels), _middle(matrices)


def _middle(weights: Sequence[Float64]) -> list[Float64]:
    return sorted(weights, key=lambda w: w.size)[len(weights) // 2 :][:1]


def rows(models: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield a row for each algorithm and its maker."""
    pairs = [weights_of(model) for model in models]
    kernels = [kernel for first, _ in pairs for kernel in first]
    matrices = [matrix for _, second in pairs for matrix in second]
    for names, svd in MATRICES.items():
        yield _row(names, matrices, lambda m, svd=svd: _product(svd(m, min(m.shape) // 4)))
    for names, decompose in (KERNELS | TERMS).items():
        yield _row(names, kernels, decompose)


def _row(
    names: tuple[str, str], weights: Sequence[Float64], decompose: Callable[[Float64], Any]
) -> dict[str, Any]:
    errors, sensitivities, seconds = [], [], 0.0
    for weight in weights:
        start = time.process_time()
        made = decompose(weight)
        seconds += time.process_time() - start
        if isinstance(made, list):
            sensitivities.append(sensitivity(made) / float(np.vdot(weight, weight)))
            made = cp_to_tensor((None, made))
        errors.append(relative_error(weight, made))
    mean = float(np.mean(sensitivities)) if sensitivities else None
    return dict(zip(COLUMNS, (*names, float(np.mean(errors)), mean, seconds), strict=True))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("models", nargs="*", type=Path, default=MODELS, help="safetensors")
    given = parser.parse_args()
    figures = list(rows(given.models))
    print(json.dumps(figures, indent=2) if given.json else as_table(COLUMNS, figures))


if __name__ == "__main__":
    main()
