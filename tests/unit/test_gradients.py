"""How much a network's result feels errors: moments of gradients, sample by sample."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec import EncodeOptions, InvalidOptions  # noqa: E402
from nnr_codec.calibration.calibrate import calibrate  # noqa: E402
from nnr_codec.calibration.file import load_calibration, save_calibration  # noqa: E402
from nnr_codec.calibration.gradients import OutputGradients  # noqa: E402
from nnr_codec.calibration.halves import Halves  # noqa: E402
from nnr_codec.calibration.moments import ResultSides, RowLayout, result_sides  # noqa: E402
from nnr_codec.calibration.outputs import output_of  # noqa: E402
from nnr_codec.calibration.weight_gradients import WeightGradients  # noqa: E402


class Padded(nn.Conv2d):
    """Pads by itself."""

    def forward(self, inputs: Any) -> Any:
        return super().forward(functional.pad(inputs, (0, 1, 0, 1)))


def _random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "few positions": (lambda: nn.Linear(6, 4), (5, 2, 6)),
    "many positions": (lambda: nn.Linear(6, 4), (5, 3, 7, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, 2, padding=1), (5, 4, 7, 8)),
    "groups": (lambda: nn.Conv2d(4, 6, (3, 1), groups=2, dilation=2), (5, 4, 7, 8)),
    "depthwise": (lambda: nn.Conv1d(4, 4, 3, groups=4), (5, 4, 9)),
    "three dimensions": (lambda: nn.Conv3d(2, 3, 2), (5, 2, 3, 4, 5)),
    "same": (lambda: nn.Conv2d(4, 6, 4, padding="same"), (5, 4, 7, 8)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (5, 4, 7, 8)),
    "padded": (lambda: Padded(4, 6, 3), (5, 4, 7, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (5, 4, 5, 4)),
}


def turns(first: int, count: int) -> list[int]:
    """The halves of samples that take turns, behind `first` others."""
    return [(first + index) % 2 for index in range(count)]


def test_a_sample_that_comes_again_is_in_the_same_half() -> None:
    halves = Halves()
    samples = _random(4, 5)
    assert halves.of(samples) == [0, 1, 0, 1]
    assert halves.of(samples[[3, 3, 0]]) == [1, 1, 0]
    assert halves.of(_random(2, 5, seed=3)) == [0, 1]
    again = Halves()
    assert again.of((samples, samples * 2)) == [0, 1, 0, 1]
    assert again.of((samples, samples)) == [0, 1, 0, 1]  # others, as one part differs
    assert again.of({"x": samples[:2].bfloat16()}) == [0, 1]
    layer = nn.Linear(5, 3)
    for own in ([0, 0, 1], [0, 1, 1], [1, 0, 1]):
        sums = WeightGradients(layer, ResultSides())
        sums.add(layer, samples[:3], _random(3, 3), own)
        assert sums._counts == [own.count(0), own.count(1)]
    same = WeightGradients(layer, ResultSides())
    same.add(layer, samples[:3], _random(3, 3), [0, 0, 0])
    moments = same.moments()
    assert moments is not None
    assert not moments.is_checked


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_those_of_each_samples_gradient(name: str) -> None:
    make, shape = LAYERS[name]
    layer, inputs = make(), _random(*shape)
    output = layer(inputs)
    gradient = _random(*output.shape, seed=1)
    sums = WeightGradients(layer, ResultSides())
    for first in range(2):  # each sample in both halves: they are alike, and add up
        sums.add(layer, inputs, gradient, turns(first, len(inputs)))
    moments = sums.moments()
    assert moments is not None
    assert moments.is_checked

    groups = getattr(layer, "groups", 1)
    rows = layer.weight.shape[0]
    columns = layer.weight[0].numel()
    of_columns, of_rows = np.zeros((groups, columns, columns)), np.zeros((rows, rows))
    for sample in range(len(inputs)):
        loss = (layer(inputs[sample : sample + 1]) * gradient[sample : sample + 1]).sum()
        found = torch.autograd.grad(loss, layer.weight)[0].double().numpy().reshape(rows, columns)
        of_rows += found @ found.T
        for group, part in enumerate(found.reshape(groups, -1, columns)):
            of_columns[group] += part.T @ part
    scale = max(of_columns.max(), of_rows.max())
    np.testing.assert_allclose(moments.columns[:, 0] / 2, of_columns, rtol=1e-4, atol=1e-6 * scale)
    np.testing.assert_allclose(moments.rows / 2, of_rows, rtol=1e-4, atol=1e-6 * scale)
    assert moments.fits(rows, columns)
    assert not moments.fits(rows, columns + 1)


def test_samples_go_to_both_halves_in_turns() -> None:
    layer = nn.Linear(5, 3)
    inputs, gradient = _random(9, 5), _random(9, 3, seed=1)
    together, apart = WeightGradients(layer, ResultSides()), WeightGradients(layer, ResultSides())
    together.add(layer, inputs, gradient)
    for first in range(0, 9, 3):
        part = slice(first, first + 3)
        apart.add(layer, inputs[part], gradient[part], turns(first, 3))
    found, expected = apart.moments(), together.moments()
    assert found is not None
    assert expected is not None
    assert found.count == expected.count == 9
    np.testing.assert_allclose(found.columns, expected.columns, rtol=1e-4, atol=1e-3)
    one = WeightGradients(layer, ResultSides())
    one.add(layer, inputs[:1], gradient[:1])
    alone = one.moments()
    assert alone is not None
    assert not alone.is_checked
    expected_rows = gradient[:1].T @ gradient[:1] * inputs[0].square().sum()
    np.testing.assert_allclose(alone.rows, expected_rows, rtol=1e-5)


def test_sensitivities_are_the_curvature() -> None:
    """For values it is that of half the squared error of the output, whatever the samples."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.Flatten())
    inputs = _random(4000, 5)
    gradients = OutputGradients(module, outputs="values", perturb=lambda batch, _: batch)
    known = calibrate(module, [inputs], gradients=gradients)
    curvature = float(inputs.square().sum(1).mean()) * 4 / 20  # of each of the 20 weights
    assert known.sensitivities["0.weight"] == pytest.approx(curvature, rel=0.2)
    result = known.result["0.weight"]
    assert result.columns is not None
    trace = np.trace(result.columns[0, 0]) / 4000 / 20
    assert trace == pytest.approx(curvature, rel=0.1)


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        (None, "classes"),
        (torch.zeros(4, dtype=torch.long), "classes"),
        (np.zeros(4, np.int64), "classes"),
        ([0, 1, 2, 0], "classes"),
        (torch.zeros(4, 3), "values"),
        (np.zeros((4, 3), np.float32), "values"),
    ],
)
def test_what_outputs_are_of(targets: Any, kind: str) -> None:
    module, inputs = nn.Linear(5, 3), _random(4, 5)
    batch = inputs if targets is None else (inputs, targets)
    assert output_of(module, inputs, batch)[1] == kind


def test_outputs_that_a_layer_did_not_make_are_values() -> None:
    module = nn.Sequential(nn.Linear(5, 3), nn.Softmax(-1))
    assert output_of(module, _random(4, 5), _random(4, 5))[1] == "values"


def test_settings() -> None:
    calls = []

    def perturb(batch: Any, generator: Any) -> Any:
        calls.append("perturb")
        return batch

    def loss(output: Any, targets: Any) -> Any:
        calls.append("loss")
        return (output - targets).square().sum()

    module = nn.Linear(5, 3)
    gradients = OutputGradients.by_settings(module, {"perturb": perturb, "loss": loss})
    gradients.add((_random(4, 5), _random(4, 3)))
    assert calls == ["perturb", "loss"]
    assert gradients.kinds == {"loss"}


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"pertub": None}, "pertub"),
        ({"loss": 3}, "loss"),
        ({"outputs": "images"}, "outputs"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidOptions, match=word):
        OutputGradients.by_settings(nn.Linear(2, 2), settings)


def test_moments_that_take_too_much_are_of_smaller_blocks() -> None:
    layouts = {
        "small": RowLayout((4, 9)),
        "wide": RowLayout((10, 100)),
        "tall": RowLayout((1000, 5)),
        "convolution": RowLayout((8, 6, 3, 3), groups=2),
    }
    whole = sum(ResultSides().nbytes(layout) for layout in layouts.values())
    assert all(sides.is_whole for sides in result_sides(layouts, whole).values())
    without_rows = whole - 2 * 8 * 1000**2
    sides = result_sides(layouts, without_rows)
    assert sides.pop("tall") == ResultSides(rows=False)
    assert all(each.is_whole for each in sides.values())
    sides = result_sides(layouts, without_rows - 2 * 8 * 100 * 50)
    assert sides["wide"] == ResultSides(block=50)
    assert sides["convolution"] == ResultSides()
    sides = result_sides(layouts, without_rows - 2 * 8 * (100 * 50 + 1))
    assert sides["convolution"] == ResultSides(block=27)  # three channels
    assert set(result_sides(layouts, 0).values()) == {ResultSides(1, False)}
    each = result_sides(layouts, None, of_one=2 * 8 * 100 * 50)
    assert each["small"] == ResultSides()
    assert each["wide"] == ResultSides(block=25)  # with its rows
    assert each["tall"] == ResultSides(rows=False)
    assert result_sides(layouts, None) == dict.fromkeys(layouts, ResultSides())


def test_blocks_of_groups() -> None:
    layer = nn.Conv2d(8, 6, 3, groups=2)
    inputs = _random(9, 8, 6, 6)
    gradient = _random(*layer(inputs).shape, seed=1)
    whole, reduced = (WeightGradients(layer, ResultSides(block)) for block in (None, 18))
    for sums in (whole, reduced):
        sums.add(layer, inputs, gradient)
    blocks = reduced._of_columns
    assert blocks.shape == (2, 2, 2, 18, 18)
    for first in (0, 1):
        part = slice(18 * first, 18 * first + 18)
        expected = whole._of_columns[:, :, 0, part, part]
        torch.testing.assert_close(blocks[:, :, first], expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("positions", [1, 40])
def test_blocks_of_columns_are_those_of_the_whole(positions: int) -> None:
    """By products of few positions, and by gradients."""
    layer = nn.Linear(12, 5)
    inputs, gradient = _random(9, positions, 12), _random(9, positions, 5, seed=1)
    whole, reduced = (WeightGradients(layer, ResultSides(block)) for block in (None, 4))
    for sums in (whole, reduced):
        sums.add(layer, inputs, gradient)
    for half in range(2):
        blocks = reduced._of_columns[half, 0]
        assert blocks.shape == (3, 4, 4)
        matrix = whole._of_columns[half, 0, 0]
        expected = torch.stack([matrix[i : i + 4, i : i + 4] for i in (0, 4, 8)])
        torch.testing.assert_close(blocks, expected, rtol=1e-5, atol=1e-3)
    found = reduced.moments()
    assert found is not None
    assert found.fits(5, 12)
    assert not found.fits(5, 4)


def _module() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5))


class TestCalibrations:
    def test_file(self, tmp_path: Path) -> None:
        module, batches = _module(), [_random(30, 12)]
        known = calibrate(module, batches, gradients=OutputGradients(module))
        save_calibration(tmp_path / "known.npz", known)
        again = load_calibration(tmp_path / "known.npz")
        assert again.sensitivities == known.sensitivities
        assert (again.outputs, again.digests) == ("classes", known.digests)
        for name, result in known.result.items():
            assert np.array_equal(again.result[name].columns, result.columns)
            assert np.array_equal(again.result[name].rows, result.rows)
            assert again.result[name].count == result.count
            assert again.result[name].is_checked == result.is_checked
        first, second = (
            nnr_codec.encode(module, options=EncodeOptions(qp=-20), calibration=some).data
            for some in (known, again)
        )
        assert first == second

    def test_of_another_model(self) -> None:
        module = _module()
        known = calibrate(module, [_random(30, 12)], gradients=OutputGradients(module))
        nnr_codec.encode(module.double(), calibration=known)  # the same values
        with torch.no_grad():
            module[2].weight[0, 0] += 1
        with pytest.raises(InvalidOptions, match=r"another model: '2\.weight'"):
            nnr_codec.encode(module, calibration=known)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_of_the_same_model_in_two_bytes(self, dtype: torch.dtype) -> None:
        module, batches = _module(), [_random(30, 12)]
        wide = {name: value.numpy() for name, value in copy.deepcopy(module).state_dict().items()}
        known = calibrate(module.to(dtype), [batch.to(dtype) for batch in batches])
        nnr_codec.encode(wide, calibration=known)
        wide["2.weight"][0, 0] += 1
        with pytest.raises(InvalidOptions, match=r"another model: '2\.weight'"):
            nnr_codec.encode(wide, calibration=known)

    def test_quantization_needs_no_moments_of_inputs(self) -> None:
        module, batches = _module(), [_random(30, 12)]
        known = calibrate(module, batches, only=(), gradients=OutputGradients(module))
        assert not known.moments
        assert known.result.keys() == {"0.weight", "2.weight"}
        assert not known.unused

    def test_layers_that_do_not_run(self) -> None:
        class Half(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.unused = nn.Linear(12, 5), nn.Linear(12, 5)

            def forward(self, inputs: Any) -> Any:
                return self.used(inputs)

        module = Half()
        known = calibrate(module, [_random(30, 12)], only=(), gradients=OutputGradients(module))
        assert known.unused == ("unused.weight",)
        report = nnr_codec.encode(module, options=EncodeOptions(qp=-8), calibration=known).report
        lost = {tensor.name: tensor.nmse for tensor in report.tensors}
        assert lost["unused.weight"] <= 0.02


class Odd(nn.Module):
    """Embeddings, a layer that is called twice, one whose output is 0, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.twice = nn.Linear(12, 12)
        self.dead = nn.Linear(12, 12)
        self.up = nn.ConvTranspose1d(12, 8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 5)

    def forward(self, words: Any) -> Any:
        inner = self.twice(torch.relu(self.twice(self.words(words))))
        inner = inner + 0 * self.dead(inner)
        return self.last(self.norm(self.up(inner.transpose(1, 2))).mean(2))


class TestOddModules:
    WORDS = torch.randint(0, 15, (40, 6), generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_what_is_known(self, dtype: Any) -> None:
        torch.manual_seed(0)
        module = Odd().to(dtype).eval()
        known = calibrate(module, [self.WORDS], only=(), gradients=OutputGradients(module))
        assert known.unused == ("dead.weight",)
        assert known.result.keys() == {"twice.weight", "up.weight", "last.weight"}
        felt = {name for name, value in known.sensitivities.items() if value > 0}
        assert {"words.weight", "up.bias", "norm.running_mean", "norm.running_var"} <= felt
        assert "dead.weight" not in felt
        options = EncodeOptions(qp=-30, fold_norms=False)
        data = nnr_codec.encode(module, options=options, calibration=known).data
        decoded = nnr_codec.decode(data or b"")
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                expected = tensor.float().numpy()
                np.testing.assert_allclose(decoded[name].astype(np.float32), expected, atol=0.1)

    def test_statistics_of_norms_are_felt_as_a_change_of_them_is(self) -> None:
        torch.manual_seed(0)
        module = Odd().eval()
        module.norm.running_var += torch.rand(8)
        module.norm.weight.data += torch.randn(8)
        gradients = OutputGradients(module, outputs="values")
        gradients._generator.manual_seed(1)
        gradients.add(self.WORDS[:1])
        found = gradients.sensitivities(1)
        expected = {}
        for name in ("running_mean", "running_var"):
            statistic = getattr(module.norm, name)
            before, slopes = module(self.WORDS[:1]).detach(), []
            for channel in range(8):
                statistic[channel] += 1e-3
                slopes.append((module(self.WORDS[:1]).detach() - before) / 1e-3)
                statistic[channel] -= 1e-3
            expected[name] = float(torch.stack(slopes).square().sum()) / 8
        for name, value in expected.items():  # of few random directions
            assert found[f"norm.{name}"] == pytest.approx(value, rel=0.9)
            assert found[f"norm.{name}"] > value / 5


def test_many_small_batches_are_drawn_less_often() -> None:
    """Eight times as many targets as samples are drawn until 1024 are, and then as many."""
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4))
    batches = [torch.randn((4, 3), generator=torch.Generator().manual_seed(n)) for n in range(65)]
    known = calibrate(module, batches, only=(), gradients=OutputGradients(module))
    assert {moments.count for moments in known.result.values()} == {8 * 4 * 32 + 4 * 33}
