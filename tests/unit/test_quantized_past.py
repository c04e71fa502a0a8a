"""Weights moved by what quantized layers before them do, and the calls that this waits in."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.calibration.calibrate import calibrate
from nnr_codec.calibration.gradients import OutputGradients
from nnr_codec.model import Array, Model
from nnr_codec.options import DecompositionOptions
from nnr_codec.support import paused_call
from nnr_codec.support.paused_call import PausedCall, StuckCall, pause, stop_all
from nnr_codec.user.module import load_state

torch = pytest.importorskip("torch")
nn = torch.nn

from digits_support import calibration_batches, trained_separable  # noqa: E402

from conformance.subjects.digits_networks import (  # noqa: E402
    MODELS,
    as_input,
)
from nnr_codec.experiments.methods.ablation import corrections_without  # noqa: E402
from nnr_codec.training import quantized_past, side_by_side  # noqa: E402
from nnr_codec.training.corrections import Corrections  # noqa: E402
from nnr_codec.training.quantized_past import moved_weights  # noqa: E402
from nnr_codec.training.side_by_side import layers_called_once, meetings  # noqa: E402

QP = -24


def _random(*shape: int, seed: int = 3) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _network() -> Any:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, stride=2, groups=3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(108, 6),
    ).eval()


def _batches(count: int = 4, samples: int = 40) -> list[Any]:
    return [_random(samples, 4, 8, 8, seed=seed) for seed in range(count)]


def _state(module: Any) -> dict[str, Array]:
    return {name: values.detach().numpy().copy() for name, values in module.state_dict().items()}


def _damaged(module: Any, *names: str) -> dict[str, Array]:
    """Return a module's tensors with some, which lost a fifth of themselves and got noise."""
    state = _state(module)
    for name in names:
        noise = _random(*state[name].shape, seed=7).numpy()
        state[name] = 0.8 * state[name] + 0.1 * state[name].std() * noise
    return state


def _as_it_is(name: str, values: Array) -> Array:
    return values


class TestPausedCall:
    def test_it_goes_on_step_by_step(self) -> None:
        seen = []

        def steps() -> None:
            for number in range(1, 3):
                pause(number)
                seen.append(number)

        call = PausedCall(steps)
        assert [call.resume(), list(seen), call.resume(), list(seen)] == [1, [], 2, [1]]
        assert [call.resume(), call.resume()] == [None, None]
        assert seen == [1, 2]

    def test_its_error_is_raised_where_it_is_resumed(self) -> None:
        def fail() -> None:
            pause("once")
            raise KeyError("twice")

        call = PausedCall(fail)
        assert call.resume() == "once"
        with pytest.raises(KeyError, match="twice"):
            call.resume()
        assert call.resume() is None

    def test_it_ends_where_it_pauses(self) -> None:
        seen = []

        def steps() -> None:
            try:
                pause("once")
                seen.append("more")
            finally:
                seen.append("cleaned up")

        before = threading.active_count()
        call = PausedCall(steps)
        call.resume()
        call.stop()
        PausedCall(steps).stop()  # which never ran
        assert seen == ["cleaned up"]
        assert threading.active_count() == before

    def test_it_ends_even_if_it_catches_all(self) -> None:
        def steps() -> None:
            for number in range(3):
                try:
                    pause(number)
                except:  # noqa: E722
                    pause("in place of it")

        call = PausedCall(steps)
        call.resume()
        before = threading.active_count()
        call.stop()
        assert threading.active_count() == before - 1

    def test_one_that_waits_for_another_is_stuck(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paused_call, "_POLL_SECONDS", 0.01)
        lock = threading.Lock()

        def steps() -> None:
            with lock:
                pause("once")

        before = threading.active_count()
        calls = PausedCall(steps), PausedCall(steps)
        assert calls[0].resume() == "once"
        with pytest.raises(StuckCall):
            calls[1].resume()
        stop_all(calls)
        assert threading.active_count() == before

    def test_one_that_works_is_not_stuck(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paused_call, "_POLL_SECONDS", 0.01)
        monkeypatch.setattr(paused_call, "_MOST_IDLE_POLLS", 25)

        def work() -> None:
            while time.thread_time() < 0.5:
                pass
            pause("done")

        call = PausedCall(work)
        assert call.resume() == "done"
        call.stop()

    def test_it_sees_the_variables_of_its_caller(self) -> None:
        variable: ContextVar[int] = ContextVar("variable")
        token = variable.set(7)
        call = PausedCall(lambda: pause(variable.get()))
        variable.reset(token)
        assert call.resume() == 7
        call.stop()

    def test_elsewhere_nothing_waits(self) -> None:
        pause("nobody resumes this")


class TestMeetings:
    def test_the_copy_sees_what_its_layers_before_give(self) -> None:
        module, copy, batches = _network(), _network(), _batches(2)
        load_state(copy, Model.from_arrays(_damaged(module, "0.weight")))
        called, most = layers_called_once(module, batches[0])
        assert most == 40 * (4 + 12) * 64 * 4  # of the first layer
        names = []
        for meeting in meetings(module, copy, batches, called):
            names.append(meeting.name)
            assert len(meeting.arrivals) == 2
            for arrival, batch in zip(meeting.arrivals, batches, strict=True):
                with torch.no_grad():
                    depth = int(meeting.name.split(".")[0])
                    assert torch.equal(arrival.inputs, module[:depth](batch))
                    assert torch.equal(arrival.output, module[: depth + 1](batch))
                    assert torch.equal(arrival.changed, copy[:depth](batch))
            with torch.no_grad():
                meeting.layer.weight.mul_(1.5)  # which what comes behind sees
        assert names == ["0.weight", "2.weight", "5.weight"]

    def test_layers_that_run_twice_or_share_a_weight_do_not_meet(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.again, self.tied, self.last = (nn.Linear(4, 4) for _ in range(4))
                self.tied.weight = self.first.weight

            def forward(self, x: Any) -> Any:
                return self.last(self.tied(self.again(self.again(self.first(x)))))

        called, _ = layers_called_once(Twice(), _random(3, 4))
        assert list(called.values()) == ["last.weight"]

    def test_they_end_where_ways_part(self) -> None:
        class Parting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.one, self.other = (nn.Linear(4, 4) for _ in range(3))

            def forward(self, x: Any) -> Any:
                x = self.first(x)
                return self.other(self.one(x)) if x.mean() > 0 else self.one(self.other(x))

        module, copy = Parting(), Parting()
        for network, bias in ((module, 9.0), (copy, -9.0)):
            nn.init.constant_(network.first.bias, bias)
        before = threading.active_count()
        called, _ = layers_called_once(module, _random(3, 4))
        met = [meeting.name for meeting in meetings(module, copy, [_random(3, 4)], called)]
        assert met == ["first.weight"]
        assert threading.active_count() == before

    @pytest.mark.parametrize(("most", "expected"), [(100, 3), (9, 2), (1, 1)])
    def test_torch_has_few_threads_in_each_of_many(
        self, monkeypatch: pytest.MonkeyPatch, most: int, expected: int
    ) -> None:
        monkeypatch.setattr(side_by_side, "_MOST_THREADS", most)
        seen = []

        class Counting(nn.Linear):
            def forward(self, input: Any) -> Any:
                seen.append(torch.get_num_threads())
                return super().forward(input)

        module, copy, before = Counting(4, 4), Counting(4, 4), torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            list(meetings(module, copy, [_random(3, 4)] * 2, {module: "weight"}))
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(before)
        assert seen == [expected] * 4


class TestMovedWeights:
    def test_a_linear_layer_gets_the_weight_of_the_least_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(quantized_past, "_DAMPING", 0.0)
        module = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 5))
        tensors = _damaged(module, "0.weight")
        moved = moved_weights(
            module, lambda: tensors, {"1.weight"}, _as_it_is, [_random(90, 8)] * 2
        )
        original, damaged = _state(module)["0.weight"], tensors["0.weight"]
        best = tensors["1.weight"] @ original @ np.linalg.inv(damaged.astype(np.float64))
        assert set(moved) == {"1.weight"}
        assert np.abs(moved["1.weight"] - best).max() < 1e-3 * np.abs(best).max()

    def test_each_weight_makes_up_for_those_before(self) -> None:
        module, quantized = _network(), []
        tensors = _damaged(module, "0.weight")

        def quantize(name: str, values: Array) -> Array:
            quantized.append(name)
            return np.asarray(np.round(values * 32) / 32)

        moved = moved_weights(module, lambda: tensors, tensors, quantize, _batches(2, 250))
        assert quantized == ["2.weight", "5.weight"]  # the first one sees no change
        fixed = {**tensors, **{name: quantize(name, values) for name, values in moved.items()}}
        unmoved = {**tensors, **{name: quantize(name, tensors[name]) for name in moved}}
        other = _random(200, 4, 8, 8, seed=77)

        def error(state: dict[str, Array]) -> float:
            copy = _network()
            load_state(copy, Model.from_arrays(state))
            with torch.no_grad():
                return float((copy(other) - module(other)).square().sum())

        assert error(fixed) < 0.7 * error(unmoved)

    def test_what_another_half_of_the_samples_does_not_confirm_is_left(self) -> None:
        module = nn.Sequential(nn.Linear(6, 40), nn.Linear(40, 5))

        class Noisy(nn.Module):
            """Adds noise in place of the errors of weights."""

            def __init__(self) -> None:
                super().__init__()
                self.first, self.last = module

            def forward(self, x: Any) -> Any:
                seen = self.first(x)
                damage = float(self.first.weight[0, 0])
                return self.last(seen + damage * torch.randn(seen.shape))

        network = Noisy()
        with torch.no_grad():
            network.first.weight[0, 0] = 0.0
            network.first.weight.mul_(20)
        tensors = _state(network)
        tensors["first.weight"][0, 0] = 0.5
        moved = moved_weights(
            network, lambda: tensors, {"last.weight"}, _as_it_is, [_random(30, 6)]
        )
        change = moved.get("last.weight", tensors["last.weight"]) - tensors["last.weight"]
        assert np.abs(change).max() < 0.1 * np.abs(tensors["last.weight"]).max()

    def test_batches_of_one_sample_give_two_halves(self) -> None:
        module = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
        tensors, samples = _damaged(module, "0.weight"), _random(60, 6)
        moved = moved_weights(module, lambda: tensors, tensors, _as_it_is, list(samples.split(1)))
        assert set(moved) == {"1.weight"}

    @pytest.mark.filterwarnings("error")
    def test_what_overflows_stays_without_a_word(self) -> None:
        module = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
        tensors = _damaged(module, "0.weight")
        batches = [_random(30, 6) * 1e25] * 2
        assert moved_weights(module, lambda: tensors, tensors, _as_it_is, batches) == {}

    def test_without_errors_before_nothing_moves(self) -> None:
        module = _network()
        state = _state(module)
        assert moved_weights(module, lambda: state, state, _as_it_is, _batches()) == {}
        assert moved_weights(module, lambda: state, state, _as_it_is, []) == {}

    def test_samples_are_as_many_as_memory_allows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module, seen = _network(), []
        module[0].register_forward_hook(lambda layer, args, output: seen.append(len(args[0])))
        layer_bytes = (4 + 12) * 64 * 4  # of a sample
        monkeypatch.setattr(quantized_past, "_MOST_BYTES", 60 * 4 * layer_bytes)
        state = _damaged(module, "0.weight")
        moved_weights(module, lambda: state, set(), _as_it_is, _batches())
        assert seen == [40, 40, 20, 40, 20]  # a batch alone; then both networks


class _Remembering(nn.Module):
    """Keeps something of a batch while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        self.count = len(x)
        seen = self.first(x)
        return self.last(seen).reshape(self.count, 5)


class _Locked(nn.Module):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)
        self.lock = threading.Lock()

    def forward(self, x: Any) -> Any:
        return self.last(self.first(x))


_lock = threading.Lock()


class _Sharing(_Remembering):
    """Runs one at a time, copies among them."""

    def forward(self, x: Any) -> Any:
        with _lock:
            return super().forward(x)


@pytest.mark.parametrize("kind", [_Locked, _Sharing])
def test_networks_that_cannot_run_side_by_side_stay_as_they_are(
    kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paused_call, "_POLL_SECONDS", 0.02)
    module = kind()
    batches = [_random(count, 6) for count in (40, 30, 40, 20)]  # of which the last is held back
    tensors = _damaged(module, "first.weight")
    before = threading.active_count()
    assert Corrections(module, batches).move(lambda: tensors, {"last.weight"}, _as_it_is) == {}
    assert threading.active_count() == before
    remembering = Corrections(_Remembering(), batches)
    moved = remembering.move(lambda: tensors, {"last.weight"}, _as_it_is)
    assert set(moved) == {"last.weight"}


def _digits() -> list[Any]:
    return calibration_batches(500, 100)


@pytest.fixture(scope="module")
def known() -> Any:
    module, batches = trained_separable(), _digits()
    return calibrate(module, batches, only=(), gradients=OutputGradients(module))


class TestStreams:
    def _encoded(self, known: Any, parts: tuple[str, ...] = (), **options: Any) -> Any:
        module = trained_separable()
        corrections = corrections_without(Corrections(module, _digits()), parts)
        return nnr_codec.encode(
            _state(module),
            options=EncodeOptions(**{"qp": QP, **options}),
            calibration=known,
            corrector=corrections,
            verify=True,
        )

    def test_outputs_diverge_less_at_as_many_bytes(self, known: Any) -> None:
        with np.load(MODELS / "digits_test.npz") as archive:
            test = [as_input(archive["images"])]
        divergence = nnr_codec.calibration.divergence.OutputDivergence(trained_separable(), test)
        with_past = without = 0.0
        for qp in (-28, -25, -22, -19):
            moved, plain = (self._encoded(known, parts, qp=qp) for parts in ((), ("past",)))
            assert "moved" in moved.report.correction.methods
            assert plain.report.correction is None or "moved" not in plain.report.correction.methods
            assert len(moved.data) < 1.01 * len(plain.data)
            with_past += np.log(divergence(nnr_codec.decode(moved.data)))
            without += np.log(divergence(nnr_codec.decode(plain.data)))
        assert np.exp((with_past - without) / 4) < 0.9

    def test_errors_are_those_of_the_weights_of_the_model(self, known: Any) -> None:
        result, state = self._encoded(known), _state(trained_separable())
        decoded = nnr_codec.decode(result.data)
        weights = [r for r in result.report.tensors if r.name in result.report.correction.weights]
        assert weights
        for report in weights:
            error = (decoded[report.name].astype(np.float64) - state[report.name]).ravel()
            assert report.squared_error == pytest.approx(float(error @ error), rel=1e-6)

    def test_the_bytes_do_not_depend_on_threads(self, known: Any) -> None:
        module = trained_separable()
        with ThreadPoolExecutor(3) as pool:
            result = nnr_codec.encode(
                _state(module),
                options=EncodeOptions(qp=QP),
                calibration=known,
                corrector=Corrections(module, _digits()),
                executor=pool,
            )
        assert result.data == self._encoded(known).data

    def test_a_bounded_weight_stays(self, known: Any) -> None:
        first, second, *_ = self._encoded(known).report.correction.weights
        bounded = self._encoded(known, overrides=((first, {"max_tensor_error": 0.5}),))
        assert first not in bounded.report.correction.weights
        assert second in bounded.report.correction.weights

    def test_weights_that_are_pruned_or_on_a_grid_stay(self, known: Any) -> None:
        module = trained_separable()
        pruned, on_grid, *_ = self._encoded(known).report.correction.weights
        with torch.no_grad():
            weights = dict(module.named_parameters())
            weights[pruned][weights[pruned].abs() < weights[pruned].abs().median()] = 0
            weights[on_grid].copy_((weights[on_grid] * 8).round() / 8)
        result = nnr_codec.encode(module, options=EncodeOptions(qp=QP), calibration=_digits())
        moved = result.report.correction.weights
        assert moved
        assert not {pruned, on_grid} & set(moved)

    def test_factors_stay_and_dense_weights_make_up_for_them(self) -> None:
        options = EncodeOptions(qp=QP, decomposition=DecompositionOptions("lr", rank=0.5))
        module = trained_separable()
        result = nnr_codec.encode(module, options=options, calibration=_digits(), verify=True)
        factored = {report.name for report in result.report.tensors if report.factors}
        assert factored
        assert result.report.correction.weights
        assert not factored & set(result.report.correction.weights)
