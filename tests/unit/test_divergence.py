"""Divergence of a network's outputs, the samples that it is measured on, and the target of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions, InvalidModel, InvalidOptions
from nnr_codec.calibration import divergence
from nnr_codec.calibration.divergence import OutputDivergence
from nnr_codec.calibration.held_back import HoldBack
from nnr_codec.user.module import with_state

torch = pytest.importorskip("torch")
nn = torch.nn


def _random(*shape: int, seed: int = 3) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _arrays(module: Any) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def _network(outputs: int = 7) -> Any:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, outputs))


class TestHoldBack:
    def test_every_fourth_batch(self) -> None:
        batches = [torch.full((3, 2), float(number)) for number in range(10)]
        split = HoldBack(iter(batches))
        assert [int(batch[0, 0]) for batch in split] == [0, 1, 2, 4, 5, 6, 8, 9]
        assert [int(batch[0, 0]) for batch in split.held()] == [3, 7]

    def test_every_fourth_sample_of_few_batches(self) -> None:
        images = torch.arange(10).float()[:, None]
        labels = np.arange(10)
        batches = [(images[:7], labels[:7]), (images[7:], labels[7:])]
        split = HoldBack(batches)
        given = list(split)
        assert [batch[0][:, 0].tolist() for batch in given] == [[0, 1, 2, 4, 5, 6], [8, 9]]
        assert [batch[1].tolist() for batch in given] == [[0, 1, 2, 4, 5, 6], [8, 9]]
        assert [batch[0][:, 0].tolist() for batch in split.held()] == [[3], [7]]
        assert [batch[1].tolist() for batch in split.held()] == [[3], [7]]

    def test_parts_without_samples_stay_whole(self) -> None:
        batch = {"ids": torch.arange(8), "positions": torch.arange(3), "names": list("abcdefgh")}
        split = HoldBack([batch])
        (given,) = split
        assert given["ids"].tolist() == [0, 1, 2, 4, 5, 6]
        assert given["positions"].tolist() == [0, 1, 2]
        assert given["names"] == list("abcefg")
        assert split.held()[0]["names"] == ["d", "h"]

    def test_again(self) -> None:
        split = HoldBack([torch.ones(2, 1)] * 5)
        assert [len(list(split)) for _ in range(2)] == [4, 4]
        assert len(split.held()) == 1

    def test_too_few(self) -> None:
        split = HoldBack([torch.ones(3, 1)])
        assert len(list(split)) == 1
        with pytest.raises(InvalidOptions, match="max_kl: needs at least 4 calibration samples"):
            split.held()


class TestDivergence:
    def test_of_classes_by_hand(self) -> None:
        module, inputs = _network(), _random(30, 12)
        measure = OutputDivergence(module, [(inputs[:20], torch.zeros(20).long()), inputs[20:]])
        arrays = _arrays(module)
        other = {**arrays, "2.weight": arrays["2.weight"] * np.float32(0.5)}
        before = module(inputs).detach().numpy().astype(np.float64)
        with with_state(module, nnr_codec.model.Model.from_arrays(other)):
            after = module(inputs).detach().numpy().astype(np.float64)
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (before, after))
        expected = (p * np.log(p / q)).sum(1).mean()
        assert expected > 0.001
        assert measure(other) == pytest.approx(expected)
        assert measure(arrays) == 0
        assert all(np.array_equal(_arrays(module)[n], v) for n, v in arrays.items())

    def test_of_values_is_relative(self) -> None:
        module, inputs = nn.Linear(12, 3, bias=False), _random(50, 12)
        targets = _random(50, 3)
        for scale in (1.0, 1000.0):
            with torch.no_grad():
                module.weight.copy_(scale * _random(3, 12, seed=1))
            measure = OutputDivergence(module, [(inputs, targets)])
            outputs = module(inputs).detach().numpy().astype(np.float64)
            arrays = {"weight": module.weight.detach().numpy() * np.float32(1.1)}
            expected = (
                0.5 * np.square(0.1 * outputs).sum() / np.square(outputs - outputs.mean()).sum()
            )
            assert measure(arrays) == pytest.approx(expected, rel=1e-4)

    def test_of_embeddings_is_one_minus_the_cosine(self) -> None:
        class Embedding(nn.Linear):
            def forward(self, inputs: Any) -> Any:
                return nn.functional.normalize(super().forward(inputs))

        module, inputs = Embedding(12, 400, bias=False), _random(40, 12)
        measure = OutputDivergence(module, [inputs], outputs="values")
        before = module(inputs).detach()
        arrays = {"weight": (module.weight.detach() + 0.02 * _random(400, 12)).numpy()}
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(arrays["weight"]))
        cosine = (before * module(inputs).detach()).sum(1).mean()
        with torch.no_grad():
            module.weight.copy_(module.weight - 0.02 * _random(400, 12))
        assert measure(arrays) == pytest.approx(float(1 - cosine), rel=0.02)

    def test_not_finite(self) -> None:
        module, inputs = _network(), _random(8, 12)
        measure = OutputDivergence(module, [inputs])
        damaged = {**_arrays(module), "0.weight": np.full((40, 12), np.inf, np.float32)}
        assert measure(damaged) == float("inf")
        with torch.no_grad():
            module[0].weight.fill_(float("nan"))
        with pytest.raises(InvalidModel, match="its own outputs are not finite"):
            OutputDivergence(module, [inputs])

    def test_no_samples(self) -> None:
        with pytest.raises(InvalidOptions, match="no samples"):
            OutputDivergence(_network(), [])

    def test_fingerprints_tell_networks_and_samples_apart(self) -> None:
        module, inputs = _network(), _random(8, 12)
        first = OutputDivergence(module, [inputs]).fingerprint
        assert OutputDivergence(module, [inputs]).fingerprint == first
        assert OutputDivergence(module, [inputs[:7]]).fingerprint != first
        with torch.no_grad():
            module[0].weight.mul_(2)
        assert OutputDivergence(module, [inputs]).fingerprint != first

    def test_the_module_is_restored_after_a_failure(self) -> None:
        module, before = _network(), _arrays(_network())
        missing = {name: values + 1 for name, values in before.items() if name != "2.bias"}
        with pytest.raises(InvalidModel, match=r"'2\.bias': is missing"):
            OutputDivergence(module, [_random(8, 12)])(missing)
        assert all(np.array_equal(_arrays(module)[n], v) for n, v in before.items())


class TestTarget:
    @pytest.mark.parametrize("bound", [1e-4, 1e-2])
    def test_is_met_on_what_is_held_back(self, bound: float) -> None:
        module, before = _network(), _arrays(_network())
        batches = list(_random(160, 12).split(20))
        options = EncodeOptions(max_kl=bound, correct=False)
        result = nnr_codec.encode(module, options=options, calibration=iter(batches))
        assert all(np.array_equal(_arrays(module)[n], v) for n, v in before.items())
        measure = OutputDivergence(module, [batches[3], batches[7]])
        found = measure(nnr_codec.decode(result.data or b""))
        search = result.report.search
        assert search is not None
        losses = {seen.qp_offset: seen.loss for seen in search.evaluations}
        assert losses[search.kept] == pytest.approx(found)
        assert found <= bound < losses[search.kept + 1]
        assert len(losses) <= 7

    def test_is_measured_on_held_back_samples_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []
        call = divergence.output_of

        def noted(module: Any, inputs: Any, *others: Any) -> Any:
            seen.append(int(inputs[0, 0]))
            return call(module, inputs, *others)

        monkeypatch.setattr(divergence, "output_of", noted)
        batches = [torch.full((5, 12), float(number)) for number in range(8)]
        options = EncodeOptions(max_kl=0.1, correct=False)
        nnr_codec.encode(_network(), options=options, calibration=batches)
        assert set(seen) == {3, 7}

    def test_a_module_scores_itself(self) -> None:
        module, inputs = _network(), _random(60, 12)
        expected = module(inputs).argmax(1)
        modes: list[tuple[bool, bool]] = []

        def agreement(tried: Any) -> Any:
            modes.append((tried.training, torch.is_grad_enabled()))
            return (tried(inputs).argmax(1) == expected).float().mean()

        result = nnr_codec.encode(module, options=EncodeOptions(max_drop=0.05), evaluate=agreement)
        assert set(modes) == {(False, False)}
        assert module.training
        assert torch.equal(module(inputs).argmax(1), expected)
        with with_state(module, nnr_codec.model.Model.from_arrays(nnr_codec.decode(result.data))):
            assert float(agreement(module)) >= 0.95

    def test_needs_batches(self, tmp_path: Path) -> None:
        module = _network()
        moments = nnr_codec.calibration.calibrate.calibrate(module, [_random(8, 12)])
        with pytest.raises(InvalidOptions, match="max_kl: needs a module and batches"):
            nnr_codec.encode(module, options=EncodeOptions(max_kl=1), calibration=moments)
        measure = OutputDivergence(module, [_random(8, 12)])
        options = EncodeOptions(max_kl=0.01)
        arrays = _arrays(module)
        result = nnr_codec.encode(arrays, options=options, calibration=moments, evaluate=measure)
        assert measure(nnr_codec.decode(result.data or b"")) <= 0.01
