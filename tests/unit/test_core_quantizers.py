"""The core's Python interface: quantizers, what they lose and what they save."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_support import NEXT_STATE

from nnr_codec._core import (
    DecodeStatus,
    TensorSyntax,
    TensorToEncode,
    common_divisors,
    decode_codeword,
    dequantize,
    dequantize_in_place,
    encode_codeword,
    largest_magnitude,
    measure_distortion,
    quantize,
)


def normal(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def syntax_of(count: int, dq: bool, rows: int = 1) -> TensorSyntax:
    return TensorSyntax(rows, count // rows, dependent_quantization=dq)


def integers_of(syntax: TensorSyntax, levels: np.ndarray) -> np.ndarray:
    return TensorToEncode(syntax, levels).reconstruct().astype(np.float64)


def distortion(
    weights: np.ndarray, step: float, integers: np.ndarray, importance: Any = 1.0
) -> float:
    """As the quantizers measure it: importance * (weight / step - q)**2, summed."""
    return float((importance * (weights.astype(np.float64) / step - integers) ** 2).sum())


def best_distortion(weights: np.ndarray, step: float, importance: np.ndarray) -> float:
    """The least distortion of any sequence of integers: Viterbi with many integers per weight."""
    costs = {0: 0.0}
    for weight, share in zip(weights.astype(np.float64) / step, importance, strict=True):
        reach: dict[int, float] = {}
        near = round(abs(weight)) // 2 + 3
        for state, cost in costs.items():
            for k in range(-near, near + 1):
                q = 2 * k - (state & 1) * ((k > 0) - (k < 0))
                after = NEXT_STATE[state][k & 1]
                total = cost + share * (weight - q) ** 2
                if total < reach.get(after, np.inf):
                    reach[after] = total
        costs = reach
    return min(costs.values())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step", [0.05, 0.4, 3.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_dependent_quantization_is_optimal_without_rates(
    seed: int, step: float, weighted: bool
) -> None:
    weights = normal(seed, 60)
    importance = np.ones(60, np.float32)
    if weighted:
        importance = np.random.default_rng(seed).random(60, np.float32) * 9
        importance[::7] = 0
    syntax = syntax_of(60, True)
    levels = quantize(syntax, weights, step, 0.0, importance if weighted else None)
    found = distortion(weights, step, integers_of(syntax, levels), importance)
    assert found == pytest.approx(best_distortion(weights, step, importance), rel=1e-12)


def test_dependent_quantization_is_optimal_beyond_its_window() -> None:
    """Decisions leave the search while it goes on, and are those of a search over everything."""
    weights = normal(9, 3000)
    syntax = syntax_of(3000, True)
    found = distortion(weights, 0.5, integers_of(syntax, quantize(syntax, weights, 0.5)))
    assert found == pytest.approx(best_distortion(weights, 0.5, np.ones(3000)), rel=1e-12)


@pytest.mark.parametrize("scan_order", [0, 1, 3])
def test_dependent_quantization_beats_other_choices(scan_order: int) -> None:
    """Rounding to the even quantizer, zeros, and random changes of the result."""
    weights = normal(4, 40 * 30)
    syntax = TensorSyntax(40, 30, dependent_quantization=True, scan_order=scan_order)
    levels = quantize(syntax, weights, 0.3)
    best = distortion(weights, 0.3, integers_of(syntax, levels))
    rng = np.random.default_rng(5)
    alternatives = [np.round(weights / 0.6).astype(np.int32), np.zeros_like(levels)]
    for _ in range(200):
        other = levels.copy()
        other[rng.integers(0, other.size, rng.integers(1, 4))] += rng.choice([-1, 1])
        alternatives.append(other)
    for other in alternatives:
        assert best <= distortion(weights, 0.3, integers_of(syntax, other)) * (1 + 1e-12)
    uniform = distortion(weights, 0.3 * 2, np.round(weights.astype(np.float64) / 0.6)) * 4
    assert best < 0.8 * uniform  # the gain over a uniform quantizer of the same spacing


def test_uniform_quantization_without_rates_rounds() -> None:
    weights = np.concatenate([normal(1, 500), np.array([0.5, 1.5, -0.5, -1.5, 0], np.float32)])
    levels = quantize(syntax_of(505, False), weights, 1.0)
    assert levels.tolist() == np.rint(weights).astype(np.int32).tolist()


@pytest.mark.parametrize("dq", [False, True])
@pytest.mark.parametrize("lam", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("rows", [1, 50])
def test_rates_lower_the_joint_cost(dq: bool, lam: float, rows: int) -> None:
    """D + lambda * R, R the bits that the codeword really has, against the least distortion."""
    weights = np.random.default_rng(11).laplace(size=5000).astype(np.float32)
    syntax = syntax_of(5000, dq, rows)
    costs, rates = [], []
    for searched in (0.0, lam):
        levels = quantize(syntax, weights, 0.7, searched)
        bits = 8 * len(encode_codeword([TensorToEncode(syntax, levels)], 0)[0])
        costs.append(distortion(weights, 0.7, integers_of(syntax, levels)) + lam * bits)
        rates.append(bits)
    assert costs[1] < costs[0]
    assert rates[1] < rates[0]


@pytest.mark.parametrize("dq", [False, True])
def test_a_larger_lambda_means_fewer_bits_and_more_error(dq: bool) -> None:
    weights = normal(2, 4000)
    syntax = syntax_of(4000, dq, 40)
    bits, errors = [], []
    for lam in (0.0, 0.1, 0.4, 1.6, 1e9):
        levels = quantize(syntax, weights, 0.4, lam)
        bits.append(len(encode_codeword([TensorToEncode(syntax, levels)], 0)[0]))
        errors.append(distortion(weights, 0.4, integers_of(syntax, levels)))
    assert bits == sorted(bits, reverse=True)
    assert errors == sorted(errors)
    assert not levels.any()


@pytest.mark.parametrize(("dq", "lam"), [(True, 0.0), (True, 0.5), (False, 0.5)])
def test_importance_is_where_the_error_is_not(dq: bool, lam: float) -> None:
    # Rounding, uniform without rates, is the best for any importance.
    weights = normal(3, 4000)
    importance = np.where(np.arange(4000) % 2, 20, 0.5).astype(np.float32)
    syntax = syntax_of(4000, dq, 40)
    plain = integers_of(syntax, quantize(syntax, weights, 0.5, lam))
    aware = integers_of(syntax, quantize(syntax, weights, 0.5, lam, importance))
    important = importance > 1

    def error(integers: np.ndarray, part: np.ndarray) -> float:
        return distortion(weights[part], 0.5, integers[part])

    assert error(aware, important) < 0.9 * error(plain, important)
    assert error(aware, ~important) > error(plain, ~important)


@pytest.mark.parametrize("dq", [False, True])
def test_importance_scales_like_lambda(dq: bool) -> None:
    """Twice the importance and twice the lambda: the same decisions."""
    weights = normal(6, 1000)
    syntax = syntax_of(1000, dq, 10)
    twice = np.full(1000, 2, np.float32)
    assert np.array_equal(
        quantize(syntax, weights, 0.5, 0.3), quantize(syntax, weights, 0.5, 0.6, twice)
    )


@pytest.mark.parametrize("dq", [False, True])
@pytest.mark.parametrize("scan_order", [0, 1])
@pytest.mark.parametrize("context", ["parent", "history"])
def test_a_parent_and_history_tell_where_bits_go(dq: bool, scan_order: int, context: str) -> None:
    """Their rates make a codeword with a smaller joint cost than rates without them."""
    rng = np.random.default_rng(12)
    weights = rng.laplace(size=90 * 80).astype(np.float32)
    earlier = np.rint(weights / (2 if dq else 1) + rng.normal(0, 0.2, weights.size))
    known: dict[str, Any] = {
        "parent": {"temporal_contexts": True, "parent": earlier.astype(np.int32)},
        "history": {"history": (earlier != 0).astype(np.uint8)},
    }[context]
    options: dict[str, Any] = {"dependent_quantization": dq, "scan_order": scan_order}
    coded = TensorSyntax(90, 80, second_edition=True, parent_present=True, **options, **known)
    costs = []
    for rated in (coded, TensorSyntax(90, 80, **options)):
        levels = quantize(rated, weights, 0.8, 0.3)
        tensor = TensorToEncode(coded, levels, history_enabled=context == "history")
        bits = 8 * len(encode_codeword([tensor], 0)[0])
        costs.append(distortion(weights, 0.8, tensor.reconstruct()) + 0.3 * bits)
    assert costs[0] < costs[1]


@pytest.mark.parametrize("dq", [False, True])
def test_large_weights_keep_their_integers(dq: bool) -> None:
    weights = np.array([2**31 - 256, -(2**31) + 256, 2**24 + 2, 0], np.float32)
    syntax = syntax_of(4, dq)
    levels = quantize(syntax, weights, 1.0)
    status, ((_, _, integers),) = decode_codeword(
        encode_codeword([TensorToEncode(syntax, levels)], 0)[0], [syntax], 0, []
    )
    assert status == DecodeStatus.OK
    assert np.abs(integers - weights.astype(np.float64)).max() <= 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"step": 0.0}, {"step": -1.0}, {"step": float("nan")}, {"lambda_": -1.0},
        {"lambda_": float("nan")}, {"weights": np.zeros(5, np.float32)},
        {"importance": np.zeros(5, np.float32)},
    ],
)  # fmt: skip
def test_quantizers_refuse(arguments: dict[str, Any]) -> None:
    good: dict[str, Any] = {"weights": np.zeros(4, np.float32), "step": 1.0}
    with pytest.raises(ValueError, match=next(iter(arguments)).rstrip("_")):
        quantize(syntax_of(4, True), **{**good, **arguments})
    with pytest.raises(ValueError, match="codebook"):
        quantize(TensorSyntax(1, 4, codebook_size=2), **good)


def test_dequantize_is_one_binary32_multiplication() -> None:
    integers = np.array([0, 1, -1, 3, 2**24 + 1, -(2**31), 2**31 - 1], np.int32)
    for step in (np.float32(0.1), np.float32(2.0**-126), np.float32(1.5 * 2**100)):
        with np.errstate(over="ignore"):
            expected = step * integers.astype(np.float32)
        assert np.array_equal(dequantize(integers, float(step)), expected)


def test_dequantize_in_place_writes_where_the_integers_are() -> None:
    integers = np.array([0, 1, -3, 2**24 + 1], np.int32)
    expected = dequantize(integers, 0.1)
    dequantize_in_place(integers, 0.1)
    assert np.array_equal(integers.view(np.float32), expected)
    for other in (integers.astype(np.int64), integers[::2], integers.view(np.float32)):
        before = other.copy()
        with pytest.raises(TypeError):  # it would write to a copy
            dequantize_in_place(other, 0.1)
        assert other.tobytes() == before.tobytes()


@pytest.mark.parametrize("dq", [False, True])
@pytest.mark.parametrize("scan_order", [0, 2])
def test_measured_error_is_that_of_the_decoded_weights(dq: bool, scan_order: int) -> None:
    rng = np.random.default_rng(8)
    levels = rng.integers(-1000, 1000, 70 * 71).astype(np.int32)
    step = np.float32(0.3)
    weights = (levels * step + rng.normal(0, 0.1, levels.size)).astype(np.float32)
    tensor = TensorSyntax(70, 71, dependent_quantization=dq, scan_order=scan_order)
    decoded = dequantize(TensorToEncode(tensor, levels).reconstruct(), step)
    error, energy, largest = measure_distortion(tensor, levels, step, weights)
    difference = decoded.astype(np.float64) - weights
    assert error == pytest.approx(difference @ difference)
    assert energy == pytest.approx(np.square(weights, dtype=np.float64).sum())
    assert largest == np.abs(decoded).max()


@pytest.mark.parametrize("size", [1, 3, 64, 1001])
def test_largest_magnitude(size: int) -> None:
    weights = np.random.default_rng(size).normal(0, 1, size).astype(np.float32)
    assert largest_magnitude(weights) == np.abs(weights).max()
    weights[size // 2] = -np.inf
    assert largest_magnitude(weights) == np.inf
    weights[-1] = -np.nan
    assert np.isnan(largest_magnitude(weights))


class TestCommonDivisors:
    @pytest.mark.parametrize(("dtype", "bits"), [(np.float16, 10), (np.float32, 23)])
    @pytest.mark.parametrize("most", [7, 127, 1000])
    def test_products_have_their_scale(self, dtype: Any, bits: int, most: int) -> None:
        rng = np.random.default_rng(most)
        scales = rng.uniform(0.001, 0.01, (20, 1))
        integers = rng.integers(-most, most + 1, (20, 64))
        integers[:, :2] = 1, most  # so that no greater number divides all
        rows = (scales * integers).astype(dtype).astype(np.float64)
        found = common_divisors(rows, bits, 4096)
        np.testing.assert_allclose(found, scales[:, 0], rtol=2.0 ** (1 - bits))

    def test_random_values_have_none(self) -> None:
        rows = np.random.default_rng(0).normal(0, 1, (1, 256)).astype(np.float32)
        assert common_divisors(rows.astype(np.float64), 23, 4096).tolist() == [0]

    def test_zeros_any_number_divides(self) -> None:
        rows = np.array([[0, 0, -0.0], [0.25, 0.5, -1], [1, np.nan, 2], [1, 2, 3]])
        assert common_divisors(rows, 23, 4096).tolist() == [np.inf, 0.25, 0, 0]
        assert common_divisors(np.array([[1, np.inf]]), 23, 4096).tolist() == [0]

    def test_multiples_are_at_most_so_large(self) -> None:
        rows = np.array([[1.0, 4096, 4097]])
        assert common_divisors(rows, 23, 4097).tolist() == [1]
        assert common_divisors(rows, 23, 4096).tolist() == [0]

    def test_no_rows_and_no_columns(self) -> None:
        assert common_divisors(np.zeros((0, 4)), 23, 10).size == 0
        assert common_divisors(np.zeros((2, 0)), 23, 10).tolist() == [np.inf, np.inf]
