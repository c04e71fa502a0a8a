"""Tucker-2: a kernel as a core between bases of outputs and inputs, plain and data-aware."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...factorization.forms import Tucker2
from ...model import Array, Float64
from .conjugate_gradients import conjugate_gradients
from .kernel import checked_ranks, checked_weight, closest, damped, evenly_scaled, squared_error
from .svd import weighted_svd
from .tensors import leading_vectors, projected

_MAX_SWEEPS = 50
_TOLERANCE = 1e-5  # of what the core misses of the kernel's energy, gained in a sweep
_WEIGHTED_SWEEPS = 20
_WEIGHTED_TOLERANCE = 1e-3
_STEPS = 5  # of conjugate gradients in a sweep: the next sweep goes on


def tucker2(
    weight: Array,
    ranks: Sequence[int],
    *,
    moment: Float64 | None = None,
    name: str = "weight",
) -> Tucker2:
    """Approximate a kernel by a core and two bases.

    Args:
        weight: (T, S, d) or (T, S, d1, d2), any float type.
        ranks: r_T, r_S: 1 to T and S; each is cut to what the other and the taps can fill.
        moment: second moment of the unfolded input, n x n, n = S·d1·d2: then the error of the
            output is minimized, and is not larger than without.

    Returns:
        Factors in float32, scaled evenly.

    Raises:
        InvalidModel, InvalidOptions: as `checked_weight` and `checked_ranks` say.
    """
    values = checked_weight(weight, Tucker2, name, moment)
    plain = orthonormal_tucker2(values, ranks, name)
    if moment is None:
        return _form(*plain)
    aware = _weighted(values, plain[2], len(plain[0]), damped(moment))
    return closest(values, [_form(*plain), _form(*aware)], moment)


def orthonormal_tucker2(
    kernel: Float64, ranks: Sequence[int], name: str
) -> tuple[Float64, Float64, Float64]:
    """Return core, U_T and U_S by higher-order orthogonal iteration, the bases orthonormal.

    From the leading vectors of the unfoldings on, one basis after the other is improved until the
    core's energy grows no more. Only Gram matrices of T x T and S x S are decomposed.

    Args:
        kernel: (T, S, d) or (T, S, d1, d2).
        ranks: r_T, r_S.

    Raises:
        InvalidOptions: the ranks are impossible.
    """
    rank_out, rank_in = checked_ranks(Tucker2, kernel.shape, ranks, name)
    taps = math.prod(kernel.shape[2:])
    rank_out = min(rank_out, rank_in * taps)
    rank_in = min(rank_in, rank_out * taps)
    energy, kept = float(np.vdot(kernel, kernel)), 0.0
    inputs = leading_vectors(kernel, 1, rank_in)
    for _ in range(_MAX_SWEEPS):
        outputs = leading_vectors(projected(kernel, [inputs], [1]), 0, rank_out)
        partial = projected(kernel, [outputs], [0])  # r_T x S x taps
        inputs = leading_vectors(partial, 1, rank_in)
        core = projected(partial, [inputs], [1])
        before, kept = kept, float(np.vdot(core, core))
        if kept - before <= _TOLERANCE * (energy - kept):
            break
    return core, outputs, inputs


def _form(core: Float64, outputs: Float64, inputs: Float64) -> Tucker2:
    """Return the form of orthonormal bases, scaled evenly.

    An error in an element of U_T moves the product by the norm of a slab of the core.
    """
    energy = max(float(np.vdot(core, core)), np.finfo(float).tiny)
    effects = [1.0, energy / outputs.shape[1], energy / inputs.shape[1]]
    return Tucker2(
        (len(outputs), len(inputs), *core.shape[2:]),
        evenly_scaled([core, outputs, inputs], effects),
    )


def _weighted(
    kernel: Float64, inputs: Float64, rank_out: int, moment: Float64
) -> tuple[Float64, Float64, Float64]:
    """Return core, U_T and U_S that minimize the squared norm of (W - Ŵ)·moment^½.

    With U_S fixed, core and U_T follow from one low-rank approximation in the norm of the projected
    moment. With those fixed, some steps of conjugate gradients improve U_S.

    Args:
        kernel: T x S x taps.
        inputs: U_S to start from, S x r_S, orthonormal.
        rank_out: r_T.
        moment: n x n, positive definite.
    """
    total, channels, *taps = kernel.shape
    target = (kernel.reshape(total, -1) @ moment).reshape(total, channels, -1)
    core, outputs = _core_and_outputs(target, inputs, rank_out, moment)
    reached = squared_error(kernel, outputs @ _expanded(core, inputs), moment)
    for _ in range(_WEIGHTED_SWEEPS):
        improved = _improved_inputs(target, core, outputs, inputs, moment)
        inputs = np.linalg.qr(improved)[0]
        core, outputs = _core_and_outputs(target, inputs, rank_out, moment)
        before = reached
        reached = squared_error(kernel, outputs @ _expanded(core, inputs), moment)
        if before - reached <= _WEIGHTED_TOLERANCE * before:
            break
    return core.reshape(rank_out, -1, *taps), outputs, inputs


def _core_and_outputs(
    target: Float64, inputs: Float64, rank_out: int, moment: Float64
) -> tuple[Float64, Float64]:
    """Return the best core (r_T x r_S x taps) and U_T for a basis U_S of the inputs."""
    channels, rank_in = inputs.shape
    taps = target.shape[2]
    half = np.tensordot(inputs, moment.reshape(channels, taps, channels, taps), (0, 0))
    between = np.tensordot(half, inputs, (2, 0)).transpose(0, 1, 3, 2)  # r_S taps r_S taps
    gram = between.reshape(rank_in * taps, rank_in * taps)
    right_side = np.tensordot(target, inputs, (1, 0)).transpose(0, 2, 1).reshape(len(target), -1)
    best: Float64 = np.asarray(
        np.linalg.solve(gram, right_side.T).T, np.float64
    )  # T x (r_S·taps), of full rank
    left, singular, right = weighted_svd(best, rank_out, gram)
    return (singular[:, None] * right).reshape(rank_out, rank_in, taps), left


def _improved_inputs(
    target: Float64, core: Float64, outputs: Float64, inputs: Float64, moment: Float64
) -> Float64:
    """Return U_S after some steps towards the minimum over it alone."""
    rank_out, rank_in, taps = core.shape
    narrow = np.tensordot(outputs, target, (0, 0))  # U_T is orthonormal: only this part counts

    def contracted(change: Float64) -> Float64:
        return np.tensordot(change, core, ((0, 2), (0, 2)))

    def applied(x: Float64) -> Float64:
        change = (_expanded(core, x) @ moment).reshape(rank_out, len(x), taps)
        return contracted(change)

    gram = np.tensordot(core, core, ((0, 2), (0, 2))) * np.trace(moment) / len(moment)
    gram += 1e-9 * np.trace(gram) / rank_in * np.eye(rank_in)

    def precondition(residual: Float64) -> Float64:
        return np.asarray(np.linalg.solve(gram, residual.T).T)

    return conjugate_gradients(applied, contracted(narrow), inputs, precondition, _STEPS)


def _expanded(core: Float64, inputs: Float64) -> Float64:
    """Return core x_S U_S, r_T x (S·taps)."""
    return np.asarray((inputs @ core).reshape(len(core), -1))
