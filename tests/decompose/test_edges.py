"""Kernels and moments at the edges: scales, zeros, repeated values; every method, no warnings."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from decompose_support import Array, random_kernel, random_moment, relative_error

from nnr_codec.decompose.algorithms.cp import cp
from nnr_codec.decompose.algorithms.ht2 import ht2
from nnr_codec.decompose.algorithms.kernel import squared_error
from nnr_codec.decompose.algorithms.svd import low_rank
from nnr_codec.decompose.algorithms.tucker import tucker2
from nnr_codec.decompose.fitting import decompose_to
from nnr_codec.decompose.ranks.error_curve import error_curve
from nnr_codec.decompose.ranks.rank_options import energy_ranks, resolved_ranks
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.factorization.forms import CP, HT2, FactoredWeight, LowRank, Tucker2

METHODS: dict[str, tuple[type[FactoredWeight], Callable[..., FactoredWeight]]] = {
    "lr": (LowRank, lambda weight, ranks, **options: low_rank(weight, *ranks, **options)),
    "cp": (CP, lambda weight, ranks, **options: cp(weight, *ranks, **options)),
    "tucker2": (Tucker2, tucker2),
    "ht2": (HT2, ht2),
}

FORMS = [form for form, _ in METHODS.values()]


def _kernels() -> dict[str, Array]:
    usual = random_kernel((16, 12, 3, 3))
    pruned, single, identity = usual.copy(), np.zeros_like(usual), np.zeros_like(usual)
    pruned[::2] = 0
    pruned[:, ::3] = 0
    single[3, 4, 1, 1] = 1
    identity[..., 1, 1] = np.eye(16, 12)
    return {
        "tiny": usual * np.float32(1e-18),
        "huge": usual * np.float32(1e18),
        "pruned": pruned,
        "ones": np.ones_like(usual),
        "single": single,
        "identity": identity,
        "1x1": random_kernel((16, 12, 1, 1)),
        "depthwise": random_kernel((16, 1, 3, 3)),
        "one output": random_kernel((1, 16, 3, 3)),
    }


KERNELS = _kernels()
LOW_RANK = {"ones", "single"}
"""Of these, 30 % of the parameters are enough for everything."""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str, method: str) -> None:
    form, decompose = METHODS[method]
    weight = KERNELS[name]
    error = relative_error(weight, decompose(weight, resolved_ranks(form, weight, 0.3)).to_dense())
    assert error <= (1e-5 if name in LOW_RANK else 1.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "moment",
    [np.zeros((108, 108)), np.ones((108, 108)), 1e-30 * np.eye(108), 1e30 * np.eye(108)],
    ids=["zeros", "one direction", "tiny", "huge"],
)
@pytest.mark.parametrize("name", ["tiny", "huge", "pruned", "identity"])
def test_moments(name: str, moment: Array, method: str) -> None:
    form, decompose = METHODS[method]
    weight = KERNELS[name]
    ranks = resolved_ranks(form, weight, 0.25)
    plain, aware = decompose(weight, ranks), decompose(weight, ranks, moment=moment)
    assert np.isfinite(aware.to_dense()).all()
    if moment.any():
        scaled = moment / moment.max()
        errors = [relative_error(weight, made.to_dense(), scaled) for made in (plain, aware)]
        assert errors[1] <= errors[0] + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_types_of_weights(method: str) -> None:
    """Any type of floats, its values within binary32."""
    form, decompose = METHODS[method]
    kernel = random_kernel((8, 6, 3, 3))
    ranks = form.max_ranks(kernel.shape)
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        values = kernel.astype(dtype)
        made = decompose(values, ranks)
        assert {factor.dtype for factor in made.factors} == {np.dtype(np.float32)}
        tolerance = 1e-2 if form is CP else 1e-5  # CP is an iteration
        assert relative_error(values.astype(np.float64), made.to_dense()) < tolerance
    with pytest.raises(InvalidModel, match="'conv': holds values that are too large"):
        decompose(kernel.astype(np.float64) * 1e200, ranks, name="conv")
    with pytest.raises(InvalidModel, match="'conv': int32: only weights of floats"):
        decompose(np.ones((8, 6, 3, 3), np.int32), ranks, name="conv")
    with pytest.raises(InvalidModel, match="'conv': holds values that are too small"):
        decompose(kernel.astype(np.float64) * 1e-200, ranks, name="conv")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e150])
def test_the_scale_of_a_moment_changes_nothing(form: type[FactoredWeight], scale: float) -> None:
    weight = random_kernel((6, 5, 3, 3))
    moment = random_moment(45)
    expected = error_curve(form, weight, moment)
    found = error_curve(form, weight, scale * moment)
    assert [c.ranks for c in found.choices] == [c.ranks for c in expected.choices]
    ranks = expected.choices[len(expected.choices) // 2].ranks
    assert energy_ranks(form, weight, 0.9, scale * moment) == energy_ranks(
        form, weight, 0.9, moment
    )
    made, other = (decompose_to(form, weight, ranks, m) for m in (scale * moment, moment))
    errors = [relative_error(weight, made.to_dense(), moment) for made in (made, other)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_without_effect_on_the_output(form: type[FactoredWeight]) -> None:
    """It meets only inputs that are always zero: any ranks will do, and no error is infinite."""
    weight = random_kernel((8, 6, 3, 3))
    weight[:, 1:] = 0
    moment = np.diag(np.repeat([0.0, 1, 1, 1, 1, 1], 9))
    curve = error_curve(form, weight, moment)
    assert all(0 <= choice.error <= 1 for choice in curve.choices)
    made = decompose_to(form, weight, curve.choices[0].ranks, moment)
    assert np.isfinite(made.to_dense()).all()
    assert squared_error(weight, made.to_dense(), moment) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_that_is_no_moment(form: type[FactoredWeight]) -> None:
    weight = random_kernel((8, 6, 3, 3))
    matrix = np.diag(np.repeat([-4.0, 2, 2, 2, 2, 2], 9))
    for call in (
        lambda: error_curve(form, weight, matrix),
        lambda: energy_ranks(form, weight, 0.9, matrix),
    ):
        with pytest.raises(InvalidOptions, match="moment: not positive definite"):
            call()
