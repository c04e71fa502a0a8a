"""Batch norms that are folded: the same network, in fewer bytes, and only where that is so."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions, InvalidModel
from nnr_codec.calibration.calibrate import calibrate
from nnr_codec.calibration.file import load_calibration, save_calibration
from nnr_codec.calibration.foldable_norms import FoldableNorm, fold_norms
from nnr_codec.calibration.gradients import OutputGradients
from nnr_codec.calibration.moments import Calibration
from nnr_codec.checkpoints.torch_tensors import model_of_module
from nnr_codec.model import Array, Model, Parameter
from nnr_codec.training.batch_norm import reestimate_batch_norm
from nnr_codec.user.module import load_state

torch = pytest.importorskip("torch")
nn = torch.nn

NAMES = ("n.weight", "n.bias", "n.running_mean", "n.running_var")
NORM = FoldableNorm(*NAMES, epsilon=1e-3, bias="c.bias", scale_sensitivity=1.0)


def _random(*shape: int, seed: int = 3) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _trained(module: Any) -> Any:
    """Return a module whose batch norms have statistics, scales and offsets."""
    for number, part in enumerate(module.modules()):
        if (
            isinstance(part, nn.modules.batchnorm._BatchNorm)
            and part.affine
            and part.track_running_stats
        ):
            size = part.num_features
            with torch.no_grad():
                part.weight.copy_(1 + 0.3 * _random(size, seed=number))
                part.bias.copy_(_random(size, seed=number + 50))
                part.running_mean.copy_(_random(size, seed=number + 100))
                part.running_var.copy_((1 + 0.5 * _random(size, seed=number + 150)).abs() + 0.1)
    return module.eval()


class Block(nn.Module):
    """A convolution with a bias and its norm; `use` makes the outputs of these."""

    def __init__(self, use: Callable[[Any, Any, Any], Any], norm: Any = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, eps=1e-3) if norm is None else norm
        self.last = nn.Linear(8, 5)
        self.use = use

    def forward(self, images: Any) -> Any:
        return self.last(self.use(self.conv, self.norm, images).relu().mean((2, 3)))


def _plain(conv: Any, norm: Any, images: Any) -> Any:
    return norm(conv(images))


def _batches() -> list[Any]:
    return [_random(16, 3, 8, 8, seed=number) for number in range(4)]


def _calibrated(module: Any) -> Calibration:
    return calibrate(module, _batches(), only=(), gradients=OutputGradients(module))


def _vectors(**changed: Array) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    vectors = {name: rng.normal(0, 1, 8).astype(np.float32) for name in (*NAMES, "c.bias")}
    vectors["n.running_var"] = np.square(vectors["n.running_var"]) + np.float32(0.1)
    return vectors | changed


def _output(vectors: Mapping[str, Array], x: Array) -> Array:
    gamma, beta, mean, variance = (vectors[name].astype(np.float64) for name in NAMES)
    out: Array = gamma * (x + vectors["c.bias"] - mean) / np.sqrt(variance + 1e-3) + beta
    return out


def test_a_folded_norm_does_the_same() -> None:
    vectors = _vectors()
    folded = NORM.folded(vectors)
    assert folded is not None
    assert {name: values.dtype for name, values in folded.items()} == dict.fromkeys(
        NORM.names, np.dtype(np.float32)
    )
    x = np.random.default_rng(1).normal(0, 2, (50, 8))
    np.testing.assert_allclose(_output(folded, x), _output(vectors, x), rtol=1e-4, atol=1e-5)
    for name in ("n.running_mean", "c.bias"):
        assert not folded[name].any()
    assert (folded["n.running_var"] == 1).all()


@pytest.mark.parametrize(
    "changed",
    [
        {"n.running_var": np.full(8, -1, np.float32)},
        {"n.weight": np.full(8, np.inf, np.float32)},
        {"n.bias": np.full(8, np.nan, np.float32)},
        {"n.weight": np.ones(8, np.float16)},
        {"n.weight": np.ones(4, np.float32)},
        {"n.weight": np.ones((8, 1), np.float32)},
        {"n.running_var": np.zeros(8, np.float32), "n.weight": np.full(8, 3e38, np.float32)},
    ],
)
def test_what_cannot_be_folded(changed: dict[str, Array]) -> None:
    assert NORM.folded(_vectors(**changed)) is None


def test_which_norms_of_a_model_are_folded() -> None:
    model = Model.from_arrays({**_vectors(), "other": np.ones((2, 2), np.float32)})
    assert fold_norms(model, [NORM], lambda p: True)[1] == (NORM,)
    changed, folded = fold_norms(model, [NORM], lambda p: p.name != "n.running_var")
    assert changed is model
    assert folded == ()
    del (lacking := _vectors())["c.bias"]
    assert fold_norms(Model.from_arrays(lacking), [NORM], lambda p: True)[1] == ()
    other = Parameter.from_array("other", _vectors()["n.bias"])
    tied = Model([*Model.from_arrays(_vectors()).values(), replace(other, tied_to="n.bias")])
    assert fold_norms(tied, [NORM], lambda p: True)[1] == ()


def test_the_bias_before_a_norm_goes_into_its_offset() -> None:
    module = _trained(Block(_plain))
    (norm,) = _calibrated(module).norms
    assert norm.names == (
        *("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "conv.bias"),
    )
    assert norm.epsilon == 1e-3


def _shared(conv: Any, norm: Any, images: Any) -> Any:
    maps = conv(images)
    return norm(maps) + maps


def _in_between(conv: Any, norm: Any, images: Any) -> Any:
    return norm(conv(images).relu_())


def _twice(conv: Any, norm: Any, images: Any) -> Any:
    return norm(norm(conv(images)))


@pytest.mark.parametrize("use", [_shared, _in_between, _twice])
def test_a_bias_that_others_see_stays(use: Callable[[Any, Any, Any], Any]) -> None:
    (norm,) = _calibrated(_trained(Block(use))).norms
    assert norm.bias is None


class Heads(nn.Module):
    """As `Block`, with what a second head makes of convolution, norm and images beside it."""

    def __init__(self, second: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self.block, self.second = Block(_plain), second
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images: Any) -> Any:
        return self.block(images), {"second": [self.second(self.block.conv, self, images)]}


@pytest.mark.parametrize(
    "second",
    [
        lambda conv, heads, images: conv(images).mean((2, 3)),
        lambda conv, heads, images: heads.norm(conv(images)) + conv(images),
        lambda conv, heads, images: heads.block.norm.running_mean,
        lambda conv, heads, images: heads.block.norm(conv(images)).mean((2, 3)),
    ],
)
def test_all_outputs_are_the_same(second: Callable[[Any, Any, Any], Any]) -> None:
    module = _trained(Heads(second))
    made = nnr_codec.encode(module, options=EncodeOptions(qp=-70), calibration=_batches()).data
    with torch.no_grad():
        expected = module(_batches()[0])[1]["second"][0].clone()
        load_state(module, Model.from_arrays(nnr_codec.decode(made or b"")))
        found = module(_batches()[0])[1]["second"][0]
    assert float((found - expected).abs().max()) < 1e-3


class Mixed(Block):
    """Gives large values, and small ones that no gradient comes from."""

    def forward(self, images: Any) -> Any:
        maps = self.conv(images)
        return torch.cat([640 * self.norm(maps).sigmoid(), 0.5 * maps.detach().sigmoid()], 1)


def test_small_outputs_beside_large_ones_count() -> None:
    (norm,) = _calibrated(_trained(Mixed(_plain))).norms
    assert norm.bias is None


def _later(conv: Any, norm: Any, images: Any) -> Any:
    maps = conv(images)
    return norm(maps) + (maps.detach() if float(images[0, 0, 0, 0]) > 9 else 0)


def test_later_batches_count() -> None:
    batches = _batches()
    batches[1][0, 0, 0, 0] = 10
    module = _trained(Block(_later))
    known = calibrate(module, batches, only=(), gradients=OutputGradients(module))
    assert [norm.bias for norm in known.norms] == [None]


def test_one_that_cannot_be_folded_does_not_hinder_others() -> None:
    module = _trained(nn.Sequential(Block(_plain), Block(_plain), Block(_plain)))
    for part in list(module)[1:]:
        part.conv = nn.Linear(5, 8)
        part.norm = nn.BatchNorm1d(8)
        part.forward = lambda values, part=part: part.last(part.norm(part.conv(values)).relu())
    odd = module[1]
    odd.forward = lambda values: odd.last(odd.norm(odd.conv(values)) * odd.norm.weight)
    known = _calibrated(_trained(module))
    assert [(norm.scale, norm.bias) for norm in known.norms] == [
        ("0.norm.weight", "0.conv.bias"),
        ("2.norm.weight", "2.conv.bias"),
    ]


def test_norms_of_positions() -> None:
    """The norm takes the second dimension of a linear layer's outputs, the last are channels."""
    module = nn.Sequential(nn.Flatten(2), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    (norm,) = _calibrated(_trained(module)).norms
    assert norm.bias is None
    assert nnr_codec.encode(module, calibration=_batches()).report.folded == ("2.weight",)


def _looks_at_the_statistics(conv: Any, norm: Any, images: Any) -> Any:
    return norm(conv(images)) * norm.running_var[:, None, None]


def _never(conv: Any, norm: Any, images: Any) -> Any:
    return conv(images)


@pytest.mark.parametrize(
    "module",
    [
        Block(_looks_at_the_statistics),
        Block(_never),
        Block(_plain, nn.BatchNorm2d(8, affine=False)),
        Block(_plain, nn.BatchNorm2d(8, track_running_stats=False)),
        Block(_plain, nn.GroupNorm(2, 8)),
    ],
)
def test_norms_that_are_not_folded(module: Any) -> None:
    assert _calibrated(_trained(module)).norms == ()


def test_norms_with_tied_vectors_are_not_folded() -> None:
    module = Block(_plain)
    module.other = nn.BatchNorm2d(8)
    module.other.weight = module.norm.weight
    module.use = lambda conv, norm, images: module.other(norm(conv(images)))
    assert _calibrated(_trained(module)).norms == ()


def test_sensitivities_are_those_of_the_folded_network() -> None:
    module = _trained(Block(_plain))
    known = _calibrated(module)
    model, folded = fold_norms(model_of_module(module), known.norms, lambda p: True)
    load_state(module, model)
    expected, found = _calibrated(module).sensitivities, known.with_folded(folded).sensitivities
    for name in ("norm.weight", "norm.bias", "conv.weight"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3)
    assert not found.keys() & set(folded[0].emptied)


def test_names_that_meet() -> None:
    model = Model.from_arrays(_vectors())
    for other in (replace(NORM, offset="n.weight"), replace(NORM, variance="n.running_mean")):
        assert fold_norms(model, [other], lambda p: True)[1] == ()
    assert fold_norms(model, [NORM, replace(NORM, bias=None)], lambda p: True)[1] == (NORM,)


def test_drops_are_from_the_network_as_it_was() -> None:
    scores: list[float] = []

    def evaluate(module: Any) -> float:
        scores.append(float(module.norm.running_mean.abs().sum()))
        return scores[-1]

    module = _trained(Block(_plain))
    options = EncodeOptions(max_drop=100.0)
    nnr_codec.encode(module, options=options, calibration=_batches(), evaluate=evaluate)
    assert scores[0] > 1
    assert scores[1] == 0


def test_statistics_are_not_estimated_anew() -> None:
    module = _trained(Block(_plain))
    model, _ = fold_norms(model_of_module(module), _calibrated(module).norms, lambda p: True)
    load_state(module, model)
    with pytest.raises(InvalidModel, match=r"norm.*is folded"):
        reestimate_batch_norm(module, _batches())


def test_a_calibration_in_a_file_has_them(tmp_path: Any) -> None:
    known = _calibrated(_trained(Block(_plain)))
    save_calibration(tmp_path / "known.npz", known)
    assert load_calibration(tmp_path / "known.npz").norms == known.norms


def test_a_stream_with_folded_norms() -> None:
    module = _trained(Block(_plain))
    with torch.no_grad():
        expected = module(_batches()[0])
    options = EncodeOptions(qp=-40)
    made = nnr_codec.encode(module, options=options, calibration=_batches())
    plain = nnr_codec.encode(
        module, options=replace(options, fold_norms=False), calibration=_batches()
    )
    assert made.report.folded == ("norm.weight",)
    assert made.report.to_json()["folded"] == ["norm.weight"]
    assert plain.report.folded == ()
    assert len(made.data or b"") < len(plain.data or b"")
    decoded = nnr_codec.decode(made.data)
    assert (decoded["norm.running_var"] == 1).all()
    assert not decoded["norm.running_mean"].any()
    assert not decoded["conv.bias"].any()
    load_state(module, Model.from_arrays(decoded))
    with torch.no_grad():
        assert float((module(_batches()[0]) - expected).abs().max()) < 0.02


@pytest.mark.parametrize(
    "options",
    [
        EncodeOptions(qp=-40, lossless=True),
        EncodeOptions(qp=-40, exclude=("norm.*",)),
        EncodeOptions(max_nmse=1e-3),
        EncodeOptions(qp=-40, max_tensor_error=1e-3),
    ],
)
def test_tensors_that_have_to_stay_near_the_model(options: EncodeOptions) -> None:
    module = _trained(Block(_plain))
    made = nnr_codec.encode(module, options=options, calibration=_batches())
    assert made.report.folded == ()
    found = nnr_codec.decode(made.data)["norm.running_mean"]
    np.testing.assert_allclose(found, module.norm.running_mean, atol=0.2)


def test_updates_are_not_folded() -> None:
    module = _trained(Block(_plain))
    first = nnr_codec.encode(module, options=EncodeOptions(profile=1)).data or b""
    known = _calibrated(module)
    made = nnr_codec.encode(module, calibration=known, parents=[io.BytesIO(first)])
    assert made.report.folded == ()


@pytest.mark.parametrize("dq", [True, False])
@pytest.mark.parametrize("value", [1.0, -3.0, 0.625, 1.1])
def test_constant_vectors_come_back_exactly_in_blocks(value: float, dq: bool) -> None:
    rng = np.random.default_rng(0)
    model: dict[str, Array] = {}
    for layer in "abcdefgh":
        model[f"{layer}.conv.weight"] = rng.normal(0, 1, (16, 8, 3, 3)).astype(np.float32)
        for part in ("weight", "bias", "running_mean"):
            model[f"{layer}.bn.{part}"] = rng.normal(0, 1, 16).astype(np.float32)
        model[f"{layer}.bn.running_var"] = np.full(16, value, np.float32)
    options = EncodeOptions(qp=-20, nonweight_qp=-40, dq=dq)
    made = nnr_codec.encode(model, options=options)
    decoded = nnr_codec.decode(made.data)
    constants = [t for t in made.report.tensors if t.name.endswith("running_var")]
    for tensor in constants:
        assert (decoded[tensor.name] == model[tensor.name]).all() == (value != 1.1)
    if value == 1.1:  # of which no step is a part: by itself it may be smaller
        return
    with nnr_codec.open(made.data) as stream:
        kinds = {t.kind for t in stream.info().tensors if t.name.endswith("running_var")}
    assert kinds == {"block"}


def test_a_bound_of_errors_is_kept_with_a_calibration() -> None:
    module = _trained(Block(_plain))
    known = _calibrated(module)
    for bound in (0.02, 0.001):
        options = EncodeOptions(qp=-18, max_tensor_error=bound)
        report = nnr_codec.encode(module, options=options, calibration=known).report
        assert 0 < max(tensor.nmse for tensor in report.tensors) <= bound
