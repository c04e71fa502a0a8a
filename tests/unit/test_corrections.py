"""Corrections after quantization: of channels, by distillation, and in streams."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions, InvalidOptions
from nnr_codec.calibration.calibrate import calibrate
from nnr_codec.calibration.divergence import OutputDivergence
from nnr_codec.calibration.gradients import OutputGradients
from nnr_codec.calibration.held_back import KeptBatches
from nnr_codec.encoding.corrections.corrected_stream import Proposal
from nnr_codec.errors import NnrWarning
from nnr_codec.model import Model
from nnr_codec.user.module import apply_with, tensors_like

torch = pytest.importorskip("torch")
nn = torch.nn

from digits_support import calibration_batches, trained_separable  # noqa: E402

from conformance.subjects.digits_networks import (  # noqa: E402
    MODELS,
    as_input,
)
from nnr_codec.training import corrections as corrections_module  # noqa: E402
from nnr_codec.training.channel_matching import match_channels  # noqa: E402
from nnr_codec.training.corrections import Corrections  # noqa: E402
from nnr_codec.training.distillation import distill  # noqa: E402

QP = -26  # some percent of the weights' energy is lost


def _random(*shape: int, seed: int = 3) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _network() -> Any:
    """Return two convolutions, one with batch norm and one with a bias, and a linear layer."""
    torch.manual_seed(5)
    network = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 6),
    )
    norm = network[1]
    norm.running_mean.copy_(0.3 * _random(16))
    norm.running_var.copy_(1 + 0.5 * _random(16).tanh())
    return network.eval()


def _batches(count: int = 6) -> list[Any]:
    return [_random(20, 4, 8, 8, seed=seed).abs() for seed in range(count)]


def _damaged(module: Any, scale: float = 0.1) -> dict[str, Any]:
    """Return the tensors of a module with errors in the weights."""
    tensors = {name: values.detach() for name, values in module.named_parameters()}
    tensors |= {name: values for name, values in module.named_buffers() if values.dim()}
    return {
        name: values + scale * values.std() * _random(*values.shape).to(values)
        if values.dim() > 1
        else values
        for name, values in tensors.items()
    }


def _vectors(module: Any) -> set[str]:
    return {name for name, values in module.state_dict().items() if values.dim() == 1}


def _error(module: Any, tensors: dict[str, Any], batches: list[Any]) -> float:
    with torch.no_grad():
        return sum(
            float((apply_with(module, tensors, batch) - module(batch)).square().sum())
            for batch in batches
        )


def _digits() -> list[Any]:
    return calibration_batches(200, 50)


def _encoded(module: Any, batches: Any = None, **options: Any) -> nnr_codec.EncodeResult:
    return nnr_codec.encode(
        module,
        options=EncodeOptions(**{"qp": QP, **options}),
        calibration=_digits() if batches is None else batches,
        verify=True,
    )


class TestMatchChannels:
    def test_the_channels_have_the_original_statistics(self) -> None:
        module, (batch, *_) = _network(), _batches(1)
        damaged = _damaged(module)
        matched = {**damaged, **match_channels(module, damaged, _vectors(module), [batch])}

        def outputs(tensors: dict[str, Any]) -> list[Any]:
            seen: list[Any] = []
            layers = [module[1], module[3], module[6]]
            hooks = [
                layer.register_forward_hook(lambda *call: seen.append(call[2])) for layer in layers
            ]
            with torch.no_grad():
                apply_with(module, tensors, batch)
            for hook in hooks:
                hook.remove()
            return [values.movedim(1, 0).flatten(1) for values in seen]

        expected, found = outputs(dict(module.state_dict())), outputs(matched)
        for layer, (wanted, values) in enumerate(zip(expected, found, strict=True)):
            assert torch.allclose(values.mean(1), wanted.mean(1), atol=1e-4)
            assert torch.allclose(values.std(1), wanted.std(1), rtol=1e-3) == (layer == 0)
        assert _error(module, matched, [batch]) < 0.95 * _error(module, damaged, [batch])

    def test_only_what_is_named(self) -> None:
        module = _network()
        damaged = _damaged(module)
        assert set(match_channels(module, damaged, _vectors(module), _batches(2))) == {
            *("1.weight", "1.bias", "3.bias", "6.bias")
        }
        assert set(match_channels(module, damaged, {"1.bias", "6.bias"}, _batches(2))) == {"6.bias"}

    def test_neither_shared_nor_tied_norms(self) -> None:
        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
                self.norm, self.one, self.other = (nn.LayerNorm(8) for _ in range(3))
                self.other.weight = self.one.weight

            def forward(self, inputs: Any) -> Any:
                first = self.norm(self.layers[1](self.norm(self.layers[0](inputs))))
                return self.other(self.layers[3](self.one(self.layers[2](first))))

        torch.manual_seed(2)
        module = Shared()
        found = match_channels(module, _damaged(module), _vectors(module), [_random(9, 8)])
        assert set(found) == {f"layers.{number}.bias" for number in range(4)}

    def test_dead_channels_and_layers_that_do_not_run(self) -> None:
        module = _network()
        module[2].spare = nn.Linear(3, 3)
        with torch.no_grad():
            module[1].weight[3] = 0
        found = match_channels(module, _damaged(module), _vectors(module), _batches(1))
        assert "2.spare.bias" not in found
        assert all(bool(values.isfinite().all()) for values in found.values())
        assert found["1.weight"][3] == 0


class TestDistill:
    def test_learns(self) -> None:
        module, batches = _network(), _batches()
        damaged = _damaged(module, 0.3)
        held = batches[4:]

        def judge(vectors: dict[str, Any]) -> float:
            return _error(module, {**damaged, **vectors}, held)

        found = distill(module, damaged, _vectors(module), batches[:4], judge, outputs="values")
        assert set(found) == {"1.weight", "1.bias", "3.bias", "6.bias"}  # no statistics
        assert judge(found) < 0.98 * judge({})
        assert all(parameter.requires_grad for parameter in module.parameters())
        assert all(parameter.grad is None for parameter in module.parameters())

    def test_nothing_that_is_judged_worse(self) -> None:
        module = _network()
        found = distill(
            module, _damaged(module), _vectors(module), _batches(2), lambda vectors: len(vectors)
        )
        assert found == {}

    def test_types(self) -> None:
        module = _network().bfloat16()
        batches = [batch.bfloat16() for batch in _batches(2)]
        damaged = _damaged(module, 0.5)
        found = distill(module, damaged, _vectors(module), batches, lambda vectors: -len(vectors))
        assert {values.dtype for values in found.values()} == {torch.bfloat16}


class TestCorrections:
    def test_proposes_what_helps(self) -> None:
        module = _network()
        tensors = {name: values.numpy() for name, values in _damaged(module, 0.3).items()}
        corrections = Corrections(module, _batches())
        proposal = corrections.propose(tensors, _vectors(module))
        assert proposal is not None
        assert proposal.methods == ("channels",)
        assert proposal.before == corrections.divergence(tensors)
        assert corrections.divergence({**tensors, **proposal.vectors}) < proposal.before

    @pytest.mark.parametrize("share", [2.0, 8.0])
    def test_half_of_what_is_too_much(self, monkeypatch: Any, share: float) -> None:
        module = _network()
        tensors = {name: values.numpy() for name, values in _damaged(module, 0.3).items()}

        def exaggerated(module: Any, tensors: Any, names: Any, batches: Any) -> dict[str, Any]:
            found = match_channels(module, tensors, names, batches)
            return {n: tensors[n] + share * (values - tensors[n]) for n, values in found.items()}

        monkeypatch.setattr(corrections_module, "match_channels", exaggerated)
        corrections = Corrections(module, _batches())
        proposal = corrections.propose(tensors, _vectors(module))
        assert (proposal is not None) == (share == 2.0)

    def test_nothing_without_samples_to_judge_by(self) -> None:
        module = _network()
        tensors = {name: values.numpy() for name, values in _damaged(module).items()}
        assert Corrections(module, [_random(3, 4, 8, 8)]).propose(tensors, {"6.bias"}) is None
        own = {name: values.numpy() for name, values in module.state_dict().items()}
        assert Corrections(module, _batches()).propose(own, _vectors(module)) is None


class TestStreams:
    @pytest.mark.parametrize("tune", [False, True])
    def test_less_is_lost_and_weights_stay(self, tune: bool) -> None:
        module = trained_separable()
        before = {name: values.clone() for name, values in module.state_dict().items()}
        plain = _encoded(module, correct=False)
        options = EncodeOptions(qp=QP, tune=tune)
        corrections = Corrections.by_options(options, module, _digits())
        corrected = nnr_codec.encode(
            {name: values.numpy() for name, values in before.items()},
            options=options,
            calibration=calibrate(module, _digits(), only=(), gradients=OutputGradients(module)),
            corrector=corrections.without_moving(),
            verify=True,
        )
        report = corrected.report.correction
        assert plain.report.correction is None
        assert report is not None
        assert report.methods == (("channels", "tuned") if tune else ("channels",))
        assert report.after < report.before
        assert corrected.report.to_json()["correction"]["after"] == report.after
        first, second = nnr_codec.decode(plain.data), nnr_codec.decode(corrected.data)
        for name, values in first.items():
            assert np.array_equal(values, second[name]) == (name not in report.tensors)
        with np.load(MODELS / "digits_test.npz") as archive:
            test = [as_input(archive["images"])]
        losses = [
            _error(module, tensors_like(module, Model.from_arrays(arrays)), test)
            for arrays in (first, second)
        ]
        assert losses[1] < losses[0]
        assert all(torch.equal(values, before[n]) for n, values in module.state_dict().items())

    @pytest.mark.parametrize(
        "options",
        [
            {"correct": False},
            {"lossless": True},
            {"exclude": ("*",)},
            {"max_nmse": 0.01},
        ],
    )
    def test_nothing_is_corrected(self, options: dict[str, Any]) -> None:
        assert _encoded(trained_separable(), **options).report.correction is None

    def test_weights_alone(self) -> None:
        report = _encoded(
            trained_separable(), exclude=("*.bias", "*_bn.*"), qp=-20
        ).report.correction
        assert report is not None
        assert (report.methods, report.tensors) == (("moved",), ())
        assert report.weights

    def test_what_travels_exactly_stays(self) -> None:
        module = trained_separable()
        result = _encoded(module, exclude=("fc.bias",))
        assert result.report.correction is not None
        decoded = nnr_codec.decode(result.data)["fc.bias"]
        assert np.array_equal(decoded, module.fc.bias.detach().numpy())

    def test_half_precision(self) -> None:
        module = trained_separable().half()
        result = _encoded(module, [batch.half() for batch in _digits()], qp=-22)
        assert result.report.correction is not None
        decoded = nnr_codec.decode(result.data)
        assert {values.dtype for values in decoded.values() if values.ndim} == {np.dtype("float16")}

    def test_batches_that_come_once(self) -> None:
        assert _encoded(trained_separable(), iter(_digits())).report.correction is not None

    def test_with_a_saved_calibration_nothing_is_corrected(self) -> None:
        module = trained_separable()
        known = calibrate(module, _digits())
        assert _encoded(module, known).report.correction is None
        with pytest.raises(InvalidOptions, match="tune: needs a module and batches"):
            _encoded(module, known, tune=True)

    def test_a_size_is_kept(self) -> None:
        module = trained_separable()
        size = len(_encoded(module, correct=False).data or b"")
        for allowed in (size - 1, size, size + 3):
            assert len(_encoded(module, target_size=allowed).data or b"") <= allowed

    def test_a_divergence_is_kept(self) -> None:
        module, batches = trained_separable(), _digits()
        result = _encoded(module, batches, max_kl=0.01)
        assert result.report.correction is not None
        measure = OutputDivergence(module, batches[3:])  # every fourth batch is held back
        assert measure(nnr_codec.decode(result.data or b"")) <= 0.01

    def test_a_divergence_is_met_by_the_coarsest_corrected_stream(self) -> None:
        bound = self._bound_that_corrections_decide(near=0.003)
        plain, corrected = (
            _encoded(trained_separable(), max_kl=bound, correct=correct).report
            for correct in (False, True)
        )
        for report in (plain, corrected):
            assert report.search is not None
            met = report.search.met
            assert (met.bytes, met.qp_offset) == (report.bytes, report.qp_offset)
            assert met.loss is not None
            assert met.loss <= bound
            assert met.is_corrected == (report is corrected)
        assert corrected.qp_offset > plain.qp_offset
        assert corrected.bytes < plain.bytes

    def _bound_that_corrections_decide(self, near: float) -> float:
        """Return a divergence that a stream has with corrections and has not without."""
        search = _encoded(trained_separable(), max_kl=near).report.search
        assert search is not None
        assert search.met.is_corrected
        (before,) = (
            seen.loss
            for seen in search.evaluations
            if seen.qp_offset == search.met.qp_offset and not seen.is_corrected
        )
        assert before is not None
        assert search.met.loss is not None
        return (before + search.met.loss) / 2

    def test_a_score_is_asked_for_eight_times_at_most(self) -> None:
        module, calls = trained_separable(), 0
        batch, *_ = _digits()
        expected = module(batch).detach()

        def score(module: Any) -> float:
            nonlocal calls
            calls += 1
            return -float((module(batch) - expected).square().mean())

        nnr_codec.encode(
            module,
            options=EncodeOptions(max_drop=1e-5, qp=-20),
            calibration=_digits(),
            evaluate=score,
        )
        assert calls <= 8

    @pytest.mark.parametrize(
        "corrector",
        [lambda found: {n: values + 1 for n, values in found.items()}, lambda found: found],
    )
    def test_a_stream_that_is_not_better_is_not_kept(
        self, corrector: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        class Stubborn:
            def __init__(self) -> None:
                self.notes = ["nothing helps"]

            def divergence(self, tensors: Any, *, perturbed: bool = False) -> float:
                return 0.5

            def move(self, decode: Any, names: Any, quantize: Any) -> dict[str, Any]:
                return {n: decode()[n] for n in names}

            def propose(self, tensors: Any, names: Any) -> Proposal:
                return Proposal(corrector({n: tensors[n] for n in names}), ("channels",), 0.5)

        tensors = {
            name: values.numpy() for name, values in trained_separable().state_dict().items()
        }
        options = EncodeOptions(qp=QP)
        plain = nnr_codec.encode(tensors, options=options)
        with pytest.warns(NnrWarning, match="nothing helps"):
            tried = nnr_codec.encode(tensors, options=options, corrector=Stubborn())
        assert tried.data == plain.data
        assert tried.report.correction is None

    def test_a_corrector_that_is_given_is_the_only_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = trained_separable()
        own = Corrections(module, _digits(), match=False, move=False)
        made: list[Any] = []
        monkeypatch.setattr(Corrections, "by_options", lambda *given: made.append(given))
        nnr_codec.encode(module, options=EncodeOptions(qp=QP), calibration=_digits(), corrector=own)
        assert not made

    def test_updates_are_not_corrected(self) -> None:
        module = trained_separable()
        parent = _encoded(module).data or b""
        update = nnr_codec.encode(
            module,
            options=EncodeOptions(qp=QP),
            calibration=_digits(),
            parents=[io.BytesIO(parent)],
        )
        assert update.report.correction is None


class TestKeptBatches:
    def test_the_first_ones(self) -> None:
        batches = [(torch.ones(4), torch.zeros(4)) for _ in range(5)]
        kept = KeptBatches(iter(batches), max_bytes=40)
        assert len(list(kept)) == 5
        assert len(kept.batches) == 2

    def test_at_least_one(self) -> None:
        kept = KeptBatches([{"ids": torch.ones(4)}] * 3, max_bytes=1)
        assert len(list(kept)) == 3
        assert len(kept.batches) == 1


class _Apart(nn.Module):  # type: ignore[misc, name-defined]
    """Calls a layer with single samples, of which the layer sees no batch."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = layer, nn.Linear(4, 3)

    def forward(self, samples: Any) -> Any:
        maps = torch.stack([self.layer(sample) for sample in samples])
        return self.last(maps if maps.dim() == 2 else maps.mean(2))


@pytest.mark.parametrize("layer", [nn.Conv1d(2, 4, 3), nn.Linear(2, 4)])
def test_layers_that_see_no_batch(layer: Any) -> None:
    shape = (1, 2, 9) if isinstance(layer, nn.Conv1d) else (1, 2)
    batches = [_random(*shape, seed=number) for number in range(8)]
    result = nnr_codec.encode(_Apart(layer), options=EncodeOptions(qp=QP), calibration=batches)
    assert result.report.calibrated == "8 samples, outputs: classes"


class _Frozen(nn.Module):  # type: ignore[misc, name-defined]
    """All vectors are in a part that takes no gradients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 3, bias=False)

    def forward(self, samples: Any) -> Any:
        with torch.no_grad():
            inner = self.inner(samples)
        return self.last(inner.relu())


class _Logarithms(nn.Module):  # type: ignore[misc, name-defined]
    """Takes values above 0, which perturbed ones are not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(6, 3)

    def forward(self, samples: Any) -> Any:
        return self.last(samples.log())


@pytest.mark.parametrize("module", [_Frozen(), _Logarithms()])
def test_tuning_of_odd_networks(module: Any) -> None:
    batches = [_random(10, 6, seed=number).abs() + 1e-6 for number in range(8)]
    options = EncodeOptions(qp=QP, tune=True)
    assert nnr_codec.encode(module, options=options, calibration=batches).data
