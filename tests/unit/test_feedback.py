"""Error feedback: what a quantized weight misses is made up for by later ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec._core import (
    TensorSyntax,
    TensorToEncode,
    allow_fast_paths,
    dequantize,
    quantize,
    quantize_with_feedback,
)
from nnr_codec.bitstream.qp import step_size
from nnr_codec.calibration.moments import (
    Calibration,
    InputMoments,
    ResultMoments,
    RowLayout,
)
from nnr_codec.factorization.forms import LowRank
from nnr_codec.quantize import feedback
from nnr_codec.quantize.feedback import _DAMPING, error_feedback
from nnr_codec.support.block_diagonal import block_diagonal

RNG = np.random.default_rng
ROWS, COLS, STEP = 24, 70, 0.02
WEIGHTS = RNG(0).normal(0, 0.05, (ROWS, COLS)).astype(np.float32)
each_quantizer = pytest.mark.parametrize("dependent", [False, True])


def moment(size: int, seed: int = 0, rank: int = 10) -> np.ndarray:
    factor = RNG(seed).normal(0, 1, (size, rank))
    return factor @ factor.T / rank + 0.05 * np.eye(size)


def syntax(*, dependent: bool, rows: int = ROWS, cols: int = COLS) -> TensorSyntax:
    return TensorSyntax(rows, cols, unary_length=8, dependent_quantization=dependent)


def error_of(levels: np.ndarray, dependent: bool) -> np.ndarray:
    coded = TensorToEncode(syntax(dependent=dependent), levels)
    return WEIGHTS - dequantize(coded.reconstruct(), STEP).reshape(ROWS, COLS)


def quantized(
    dependent: bool, inputs: np.ndarray, outputs: np.ndarray | None = None, rate: float = 0.0
) -> np.ndarray:
    known = error_feedback(inputs[None, None], outputs)
    arguments = (known.columns, known.column_weights, known.rows, known.row_weights)
    flat = WEIGHTS.reshape(-1)
    return quantize_with_feedback(syntax(dependent=dependent), flat, STEP, rate, *arguments)


NEXT_STATE = [(0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6)]


def best_path(
    targets: np.ndarray, fed: np.ndarray, weights: np.ndarray, state: int
) -> tuple[int, list[int], list[int]]:
    """Return where a row that starts in a state ends, its integers, and what they are in steps, by
    the search of all states."""
    survivors: dict[int, Any] = {state: (0.0, targets, [], [])}
    for column, weight in enumerate(weights):
        found: dict[int, Any] = {}
        for state, (cost, residuals, levels, indices) in sorted(survivors.items()):
            x = residuals[column]
            for q in range(int(np.floor(x)) - 4, int(np.ceil(x)) + 5):
                if q and (abs(q) + state) % 2:
                    continue  # of the other quantizer: even ones have even q, odd ones odd q
                integer = int(np.sign(q)) * ((abs(q) + (state & 1)) // 2)
                after = NEXT_STATE[state][integer & 1]
                price = cost + weight * (x - q) ** 2
                if after not in found or price < found[after][0]:
                    left = residuals.copy()
                    left[column + 1 :] -= (x - q) * fed[column, column + 1 :]
                    found[after] = price, left, [*levels, integer], [*indices, q]
        survivors = found
    end = min(survivors, key=lambda state: (survivors[state][0], state))
    return end, *survivors[end][2:]


class TestFactors:
    def test_they_are_those_of_the_inverse(self) -> None:
        inputs = moment(30)
        damped = (inputs * 30 / np.trace(inputs) + _DAMPING * np.eye(30)) / (1 + _DAMPING)
        upper = np.linalg.cholesky(np.linalg.inv(damped)).T
        known = error_feedback(inputs[None, None])
        expected = np.triu(upper / np.diag(upper)[:, None], 1)
        np.testing.assert_allclose(known.columns[0, 0], expected, atol=1e-6)
        weights = np.diag(upper) ** -2
        assert known.left == pytest.approx(weights.mean(), rel=1e-5)
        np.testing.assert_allclose(known.column_weights[0], weights / weights.mean(), rtol=1e-5)

    @pytest.mark.parametrize("inputs", [np.zeros((1, 1, 4, 4)), np.full((1, 1, 3, 3), np.nan)])
    def test_nothing_is_known(self, inputs: np.ndarray) -> None:
        assert error_feedback(inputs) is None

    def test_few_samples_count_less(self) -> None:
        inputs = moment(30, rank=2)[None, None]
        few, many = (error_feedback(inputs, few=n) for n in (10, 10**6))
        assert np.abs(few.columns).sum() < 0.9 * np.abs(many.columns).sum()

    def test_loss_is_that_of_the_metric(self) -> None:
        inputs, outputs = moment(5, 1), moment(8, 3)
        error = RNG(0).normal(0, 1, (8, 5))
        of_columns = (inputs / np.trace(inputs) * 5 + _DAMPING * np.eye(5)) / (1 + _DAMPING)
        of_rows = (outputs / np.trace(outputs) * 8 + _DAMPING * np.eye(8)) / (1 + _DAMPING)
        expected = np.trace(of_rows @ error @ of_columns @ error.T)
        known = error_feedback(inputs[None, None], outputs)
        assert known.loss(error) == pytest.approx(expected, rel=1e-4)

    def test_loss_of_groups(self) -> None:
        inputs = np.stack([moment(5, 1), 3 * moment(5, 2)])
        error = RNG(0).normal(0, 1, (8, 5))
        scale = np.trace(inputs, axis1=1, axis2=2).mean() / 5
        of_columns = (inputs / scale + _DAMPING * np.eye(5)) / (1 + _DAMPING)
        pairs = zip(np.split(error, 2), of_columns, strict=True)
        expected = sum(np.trace(part @ metric @ part.T) for part, metric in pairs)
        assert error_feedback(inputs[:, None]).loss(error) == pytest.approx(expected, rel=1e-4)

    def test_blocks_are_those_of_a_whole_matrix_without_the_rest(self) -> None:
        blocks = np.stack([[moment(4, 3 * g + b) * (1 + g + b) for b in range(3)] for g in (0, 1)])
        outputs = moment(8, 9)
        known = error_feedback(blocks, outputs)
        whole = error_feedback(block_diagonal(blocks)[:, None], outputs)
        assert known.columns.shape == (2, 3, 4, 4)
        np.testing.assert_allclose(block_diagonal(known.columns), whole.columns[:, 0], atol=1e-6)
        np.testing.assert_allclose(known.column_weights, whole.column_weights, rtol=1e-5)
        error = RNG(0).normal(0, 1, (8, 12))
        assert known.loss(error) == pytest.approx(whole.loss(error), rel=1e-5)

    @pytest.mark.parametrize("piece", [1, 7, 30, 100])
    def test_loss_piece_by_piece(self, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
        blocks = np.stack([[moment(4, 3 * g + b) for b in range(3)] for g in (0, 1)])
        error = RNG(0).normal(0, 1, (8, 12))
        for known in (error_feedback(blocks, moment(8, 9)), error_feedback(blocks)):
            expected = known.loss(error)
            with monkeypatch.context() as patch:
                patch.setattr(feedback, "_PIECE", piece)
                assert known.loss(error) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("piece", [1, 30, 1 << 22])
    def test_errors_are_felt_where_weights_are(
        self, piece: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(feedback, "_PIECE", piece)
        everywhere = np.full((8, 5), -3.0, np.float32)
        whole = error_feedback(moment(5, 1)[None, None], moment(8, 3))
        assert whole.felt(everywhere, 0.5) == pytest.approx(1, rel=1e-5)
        inputs = np.stack([moment(5, 1), 3 * moment(5, 2)])[:, None]
        known = error_feedback(inputs, moment(8, 3))
        in_one = np.zeros((8, 5), np.float32)
        in_one[6, 2] = 1e30  # of the second group
        of_one = known.row_weights[6] * known.column_weights[1, 2]
        assert known.felt(in_one, 1e-20) == pytest.approx(of_one, rel=1e-5)
        # A value of half the size counts a quarter.
        in_one[6, 2], in_one[0, 4] = 1, 0.5
        other = known.row_weights[0] * known.column_weights[0, 4]
        both = (of_one + other / 4) / 1.25
        assert known.felt(in_one, 1.0) == pytest.approx(both, rel=1e-5)
        assert known.felt(np.zeros((8, 5), np.float32), 1.0) == 1
        plain = error_feedback(inputs)
        assert plain.felt(in_one, 1e-9) == pytest.approx(
            plain.column_weights[[0, 1], [4, 2]].mean(), rel=1e-5
        )


class TestCore:
    @each_quantizer
    def test_independent_inputs_need_no_feedback(self, dependent: bool) -> None:
        """But for the survivors, of which one alone stays at the end of each row."""
        levels = quantized(dependent, np.eye(COLS))
        plain = quantize(syntax(dependent=dependent), WEIGHTS.reshape(-1), STEP)
        if not dependent:
            assert np.array_equal(levels, plain)
        errors = [np.square(error_of(some, dependent)).sum() for some in (levels, plain)]
        assert errors[1] <= errors[0] * 1.0001
        assert errors[0] < 1.05 * errors[1]

    @each_quantizer
    def test_errors_of_outputs_are_smaller(self, dependent: bool) -> None:
        inputs = moment(COLS)
        plain = quantize(syntax(dependent=dependent), WEIGHTS.reshape(-1), STEP)
        lost = [
            np.einsum("ij,jk,ik", error, inputs, error)
            for error in (
                error_of(quantized(dependent, inputs), dependent),
                error_of(plain, dependent),
            )
        ]
        assert lost[0] < 0.5 * lost[1]

    @each_quantizer
    def test_errors_of_results_are_smaller(self, dependent: bool) -> None:
        inputs, outputs = moment(COLS), moment(ROWS, 1, rank=3)
        lost = []
        for known in (None, outputs):
            error = error_of(quantized(dependent, inputs, known), dependent)
            lost.append(np.trace(outputs @ error @ inputs @ error.T))
        assert lost[1] < 0.7 * lost[0]

    def test_uniform_rounding_follows_the_formula(self) -> None:
        inputs, outputs = moment(COLS), moment(ROWS, 1)
        known = error_feedback(inputs[None, None], outputs)
        targets = WEIGHTS.astype(np.float64) / STEP
        expected = np.zeros((ROWS, COLS))
        for row in range(ROWS):
            rest = targets[row].copy()
            for j in range(COLS):
                expected[row, j] = np.rint(rest[j])
                rest[j:] -= (rest[j] - expected[row, j]) * np.r_[1, known.columns[0, 0, j, j + 1 :]]
            error = targets[row] - expected[row]
            targets[row + 1 :] -= np.outer(known.rows[row, row + 1 :], error)
        levels = quantized(False, inputs, outputs).reshape(ROWS, COLS)
        assert np.mean(levels == expected) > 0.99  # binary32 there, binary64 here

    @each_quantizer
    def test_rates_make_fewer_bits(self, dependent: bool) -> None:
        inputs = moment(COLS)
        free, dear = (np.abs(quantized(dependent, inputs, rate=rate)).sum() for rate in (0, 0.5))
        assert dear < 0.95 * free

    @each_quantizer
    def test_groups(self, dependent: bool) -> None:
        """Each has inputs of its own, as in a grouped convolution."""
        moments = np.stack([moment(COLS, seed) for seed in range(ROWS // 2)])
        known = error_feedback(moments[:, None])
        levels = quantize_with_feedback(
            syntax(dependent=dependent),
            WEIGHTS.reshape(-1),
            STEP,
            0.0,
            known.columns,
            known.column_weights,
        )
        error = error_of(levels, dependent)
        lost = sum(e @ moments[row // 2] @ e for row, e in enumerate(error))
        plain = error_of(
            quantize(syntax(dependent=dependent), WEIGHTS.reshape(-1), STEP), dependent
        )
        assert lost < 0.5 * sum(e @ moments[row // 2] @ e for row, e in enumerate(plain))

    @each_quantizer
    @pytest.mark.parametrize("size", [1, 7, 35])
    def test_blocks(self, dependent: bool, size: int) -> None:
        """The search is that with a whole matrix that has zeros between the blocks."""
        blocks = COLS // size
        moments = np.stack([[moment(size, g + b) for b in range(blocks)] for g in (0, 1)])
        known = error_feedback(moments, moment(ROWS, 1))
        whole = block_diagonal(known.columns)[:, None]
        first, second = (
            quantize_with_feedback(
                *(syntax(dependent=dependent), WEIGHTS.reshape(-1), STEP, 0.01),
                *(columns, known.column_weights, known.rows, known.row_weights),
            )
            for columns in (known.columns, np.ascontiguousarray(whole))
        )
        assert np.array_equal(first, second)

    @each_quantizer
    @pytest.mark.parametrize("rate", [0.0, 0.05])
    @pytest.mark.parametrize("cols", [1, 2, 16, 17, 31, 144, 210])
    def test_all_processors_do_the_same(
        self, dependent: bool, rate: float, cols: int, request: pytest.FixtureRequest
    ) -> None:
        if not allow_fast_paths(True):
            pytest.skip("this processor has only the plain paths")
        request.addfinalizer(lambda: allow_fast_paths(True))
        scale = np.repeat([1e-6, 0.05, 3.0, 1e4], ROWS // 4)[:, None]  # some beyond the tables
        weights = (RNG(cols).normal(0, 1, (ROWS, cols)) * scale).astype(np.float32).reshape(-1)
        for groups, blocks, rows in ((1, 1, moment(ROWS, 1)), (3, cols, None), (2, 1, None)):
            moments = [
                [moment(cols // blocks, g + b) for b in range(blocks)] for g in range(groups)
            ]
            known = error_feedback(np.stack(moments), rows)
            shape = syntax(dependent=dependent, cols=cols)
            fed = known.columns, known.column_weights, known.rows, known.row_weights
            assert allow_fast_paths(True)
            fast = quantize_with_feedback(shape, weights, STEP, rate, *fed)
            assert not allow_fast_paths(False)
            plain = quantize_with_feedback(shape, weights, STEP, rate, *fed)
            assert np.array_equal(plain, fast)

    def test_the_trellis_is_that_of_the_formula(self) -> None:
        """Written out: each survivor with its own path, residuals and cost."""
        known = error_feedback(moment(COLS)[None, None], moment(3, 1))
        targets = WEIGHTS[:3].astype(np.float64) / STEP
        state, expected = 0, []
        for row, target in enumerate(targets):
            weights = known.column_weights[0] * known.row_weights[row]
            state, levels, indices = best_path(target, known.columns[0, 0], weights, state)
            expected += levels
            targets[row + 1 :] -= np.outer(known.rows[row, row + 1 :], target - indices)
        levels = quantize_with_feedback(
            *(syntax(dependent=True, rows=3), WEIGHTS[:3].reshape(-1), STEP, 0.0),
            *(known.columns, known.column_weights, known.rows, known.row_weights),
        )
        assert levels.tolist() == expected

    @pytest.mark.parametrize(
        "change",
        [
            {"columns": np.zeros((1, 1, 3, 3), np.float32)},
            {"columns": np.zeros((5, 1, COLS, COLS), np.float32)},
            {"columns": np.zeros((1, 2, COLS, COLS), np.float32)},
            {"columns": np.zeros((1, COLS, 1, 0), np.float32)},
            {"column_weights": np.ones((1, 3), np.float32)},
            {"rows": np.zeros((3, 3), np.float32)},
            {"row_weights": np.ones(3, np.float32)},
            {"step": 0.0},
            {"weights": np.full(ROWS * COLS, np.nan, np.float32)},
            {"scan_order": 1},
        ],
    )
    def test_refusals(self, change: dict[str, Any]) -> None:
        arguments = {
            "tensor": syntax(dependent=True),
            "weights": WEIGHTS.reshape(-1),
            "step": STEP,
            "lambda_": 0.0,
            "columns": np.zeros((1, 1, COLS, COLS), np.float32),
            "column_weights": np.ones((1, COLS), np.float32),
        }
        quantize_with_feedback(**arguments)
        arguments |= change
        if "scan_order" in arguments:
            arguments["tensor"] = TensorSyntax(ROWS, COLS, scan_order=arguments.pop("scan_order"))
        with pytest.raises(ValueError):  # noqa: PT011
            quantize_with_feedback(**arguments)


def calibration(**moments: np.ndarray) -> Calibration:
    layout = RowLayout((ROWS, COLS))
    known = {name: InputMoments(layout, m[None, None], 10**6) for name, m in moments.items()}
    return Calibration(known, 1000)


class TestEncoding:
    MODEL = {"a": WEIGHTS, "b": WEIGHTS[::-1].copy(), "bias": WEIGHTS[0].copy()}  # noqa: RUF012

    def lost(self, data: bytes, name: str, inputs: np.ndarray) -> float:
        error = self.MODEL[name] - nnr_codec.decode(data)[name]
        return float(np.einsum("ij,jk,ik", error, inputs, error))

    def test_only_what_is_known(self) -> None:
        options = EncodeOptions(qp=-24, group=False)
        inputs = moment(COLS)
        plain = nnr_codec.encode(self.MODEL, options=options).data
        aware = nnr_codec.encode(
            self.MODEL, options=options, calibration=calibration(a=inputs)
        ).data
        assert self.lost(aware, "a", inputs) < 0.5 * self.lost(plain, "a", inputs)
        assert abs(len(aware) - len(plain)) < 0.03 * len(plain)
        before, after = nnr_codec.decode(plain), nnr_codec.decode(aware)
        assert np.array_equal(before["b"], after["b"])
        with ThreadPoolExecutor(2) as executor:
            arguments = {"options": options, "calibration": calibration(a=inputs)}
            threads = nnr_codec.encode(self.MODEL, executor=executor, **arguments)
        assert threads.data == aware

    def test_steps_follow_the_sensitivity(self) -> None:
        outputs = moment(ROWS, 1)
        result = ResultMoments(moment(COLS)[None, None], outputs, 10**6)
        sensitivities = {"a": 1.0, "b": 256.0}
        known = Calibration({}, 1, (), {"a": result, "b": result}, sensitivities)
        qps = self.qps(self.MODEL, known, qp=-30)
        # 8 octaves of squared errors: 0.75 * 4 octaves of 4 steps, around the mean.
        assert (qps["a"], qps["b"]) == (-24, -36)
        assert self.qps(self.MODEL, known, qp=-30, overrides=(("a", {"qp": -33}),))["a"] == -33

    def test_steps_follow_where_weights_are(self) -> None:
        """A layer whose inputs are mostly silent, as are its weights there, is no less felt."""
        loud, silent = moment(COLS // 2), np.zeros((COLS // 2, COLS // 2))
        half = ResultMoments(block_diagonal(np.stack([loud, silent])[None])[:, None], None, 10**6)
        full = ResultMoments(block_diagonal(np.stack([loud, loud])[None])[:, None], None, 10**6)
        model = {"a": WEIGHTS.copy(), "b": WEIGHTS.copy()}
        known = Calibration({}, 1, (), {"a": half, "b": full}, {"a": 0.5, "b": 1.0})
        apart = self.qps(model, known, qp=-30)
        model["a"][:, COLS // 2 :] = 0
        together = self.qps(model, known, qp=-30)
        assert together["a"] - together["b"] == 0 < apart["a"] - apart["b"]

    def test_steps_are_no_coarser_than_weights(self) -> None:
        result = ResultMoments(moment(COLS)[None, None], None, 10**6)
        model = {**self.MODEL, "a": np.where(RNG(5).random(WEIGHTS.shape) < 0.1, WEIGHTS, 0)}
        model["b"] *= np.float32(0.25)
        for name, other, qp in (("a", "b", -18), ("b", "a", -26)):
            values = model[name].astype(np.float64)
            deviation = np.sqrt((values**4).mean() / (values**2).mean() / 3)
            sensitivities = {name: 1.0, other: 2.0**20}
            known = Calibration({}, 1, (), {"a": result, "b": result}, sensitivities)
            found = self.qps(model, known, qp=qp)[name]
            assert step_size(found, 2) <= 3 * deviation < step_size(found + 1, 2)
            assert self.qps(model, known, qp=-4)[name] == -4  # the centre is beyond it

    def test_weights_full_of_zeros_count_less_in_the_mean(self) -> None:
        result = ResultMoments(moment(COLS)[None, None], None, 10**6)
        known = Calibration({}, 1, (), {"a": result, "b": result}, {"a": 1.0, "b": 64.0})
        full = self.qps(self.MODEL, known, qp=-36)
        assert (full["a"], full["b"]) == (-32, -40)
        few = np.where(RNG(5).random(WEIGHTS.shape) < 0.02, WEIGHTS, 0)
        sparse = self.qps({**self.MODEL, "a": few}, known, qp=-36)
        assert sparse["b"] > -38
        assert sparse["a"] - sparse["b"] == pytest.approx(8, abs=1)

    @pytest.mark.parametrize("form", ["float16", "bfloat16", "float64"])
    def test_steps_of_other_types(self, form: str) -> None:
        result = ResultMoments(moment(COLS)[None, None], None, 10**6)
        known = Calibration({}, 1, (), {"a": result, "b": result}, {"a": 1.0, "b": 256.0})
        model = {name: values.astype(form) for name, values in self.MODEL.items()}
        qps = self.qps(model, known, qp=-30)
        assert (qps["a"], qps["b"]) == (-24, -36)

    def test_values_of_which_one_is_large(self) -> None:
        """The sample has none of the size of the largest, next to which its squares are 0."""
        result = ResultMoments(moment(80)[None, None], None, 10**6)
        known = Calibration({}, 1, (), {"a": result, "b": result}, {"a": 1.0, "b": 256.0})
        tiny = np.full((60, 80), 1e-200)
        tiny.flat[1] = 1.0
        model = {"a": tiny, "b": RNG(1).normal(0, 0.05, (60, 80))}
        assert self.qps(model, known, qp=-30)["b"] <= -30

    def test_scales_of_factors_are_arbitrary(self) -> None:
        left, right = RNG(1).normal(0, 0.2, (30, 6)), RNG(2).normal(0, 0.2, (6, 40))
        known = ResultMoments(moment(40, 1)[None, None], moment(30, 2), 10**6)
        sensitivities = {"a": 1.0, "b": 16.0}
        of_b = ResultMoments(moment(COLS)[None, None], moment(ROWS), 10**6)
        calibrated = Calibration({}, 1, (), {"a": known, "b": of_b}, sensitivities)
        found = []
        for scale in (1, 16):
            factors = (np.float32(left * scale), np.float32(right / scale))
            model = {"a": factors[0] @ factors[1], "b": WEIGHTS}
            report = nnr_codec.encode(
                model,
                options=EncodeOptions(qp=-40),
                factorizations={"a": LowRank(model["a"].shape, factors)},
                calibration=calibrated,
            ).report
            coded = [t for whole in report.tensors for t in (whole, *whole.factors)]
            found.append({tensor.name: tensor.qp for tensor in coded})
        plain, scaled = found
        assert scaled["a.factor0"] - plain["a.factor0"] == pytest.approx(16, abs=1)
        assert scaled["a.factor1"] - plain["a.factor1"] == pytest.approx(-16, abs=1)
        assert scaled["b"] == plain["b"]

    @staticmethod
    def qps(model: dict[str, np.ndarray], known: Calibration, **options: Any) -> dict[str, Any]:
        given = EncodeOptions(**options)
        report = nnr_codec.encode(model, options=given, calibration=known).report
        return {tensor.name: tensor.qp for tensor in report.tensors}

    @pytest.mark.parametrize("dq", [True, False])
    def test_integers_of_thirty_bits(self, dq: bool) -> None:
        largest = np.abs(WEIGHTS).max()
        model = {"a": (WEIGHTS * (0.4 / largest)).astype(np.float32)}
        options = EncodeOptions(qp=-128, dq=dq, codebook=False, max_tensor_error=None)
        aware = nnr_codec.encode(model, options=options, calibration=calibration(a=moment(COLS)))
        np.testing.assert_allclose(nnr_codec.decode(aware.data)["a"], model["a"], atol=1e-7)

    def test_moments_of_another_shape_are_not_used(self) -> None:
        layout = RowLayout((3, COLS))
        known = Calibration({"a": InputMoments(layout, moment(COLS)[None, None], 10**6)}, 10)
        options = EncodeOptions(qp=-24)
        aware = nnr_codec.encode(self.MODEL, options=options, calibration=known).data
        assert aware == nnr_codec.encode(self.MODEL, options=options).data


class TestModules:
    def test_batches(self) -> None:
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        mixing = torch.randn(48, 48) @ torch.diag(torch.logspace(0, -3, 48)) @ torch.randn(48, 48)
        module = torch.nn.Sequential(
            torch.nn.Linear(48, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )
        batches = [torch.randn(200, 48) @ mixing for _ in range(5)]
        test = torch.randn(500, 48) @ mixing
        with torch.no_grad():
            expected = module(test)
        options = EncodeOptions(qp=-16, max_tensor_error=None)
        lost = []
        for known in (None, batches):
            data = nnr_codec.encode(module, options=options, calibration=known).data
            copy = torch.nn.Sequential(
                torch.nn.Linear(48, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
            )
            copy.load_state_dict({n: torch.tensor(v) for n, v in nnr_codec.decode(data).items()})
            with torch.no_grad():
                lost.append(float(((copy(test) - expected) ** 2).mean()))
        assert lost[1] < 0.5 * lost[0]
        assert all(p.grad is None and p.requires_grad for p in module.parameters())

    def test_batches_need_a_module(self) -> None:
        with pytest.raises(nnr_codec.InvalidOptions, match="calibration"):
            nnr_codec.encode({"w": WEIGHTS}, calibration=[WEIGHTS])
