"""Decomposition in steps, with training between them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec import EncodeOptions, InvalidModel, InvalidOptions  # noqa: E402
from nnr_codec.checkpoints.torch_tensors import model_of_module  # noqa: E402
from nnr_codec.decompose import decompose_model  # noqa: E402
from nnr_codec.layers import (  # noqa: E402
    FactorizedLayer,
    dense_state,
    factored_weights,
    load_into,
)
from nnr_codec.options import DecompositionOptions  # noqa: E402
from nnr_codec.training import decompose_gradually  # noqa: E402


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = {
        "first": nn.Conv2d(1, 12, 3, padding=1),
        "relu": nn.ReLU(),
        "conv": nn.Conv2d(12, 16, 3, padding=1, stride=2),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(16 * 9, 30),
    }
    return nn.Sequential(OrderedDict(layers))


def options(method: Any, ratio: float | None, **more: Any) -> EncodeOptions:
    return EncodeOptions(
        decomposition=DecompositionOptions(method, compression_ratio=ratio, **more)
    )


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def weights(module: nn.Module) -> list[Any]:
    return [layer.weight.detach().clone() for layer in (module.conv, module.fc)]


@pytest.mark.parametrize("method", ["lr", "cp", "tucker2", "ht2"])
def test_ratios_are_a_geometric_series(method: str) -> None:
    module = network()
    total = count(module)
    ratios = []

    def train(given: nn.Module) -> None:
        assert given is module
        assert FactorizedLayer in {type(given.conv), type(given.fc)}
        ratios.append(total / count(given))

    assert decompose_gradually(module, options(method, 4), train, steps=2) is module
    assert ratios == pytest.approx([2, 4], rel=0.15)
    assert ratios[0] >= 2
    assert ratios[1] >= 4


def test_steps_begin_with_what_training_has_left() -> None:
    module = network()
    seen = []

    def train(given: nn.Module) -> None:
        seen.append(weights(given))
        with torch.no_grad():
            for parameter in given.parameters():
                parameter.mul_(3)
        seen.append(weights(given))
        given.bias = given.fc.bias.detach().clone()

    decompose_gradually(module, options("lr", 6), train, steps=2)
    for trained, again in zip(seen[1], seen[2], strict=True):
        left, values, right = torch.linalg.svd(trained.flatten(1), full_matrices=False)
        rank = int(torch.linalg.matrix_rank(again.flatten(1), rtol=1e-4))
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert rank < int(torch.linalg.matrix_rank(trained.flatten(1), rtol=1e-4))
        torch.testing.assert_close(again.flatten(1), best, rtol=0, atol=1e-4 * float(values[0]))
    torch.testing.assert_close(module.bias, module.fc.bias.detach())


def test_one_step_is_ordinary_decomposition_and_streams_come_back() -> None:
    module = network()
    decompose_gradually(module, options("ce1", 3), lambda given: None, steps=1)
    model = model_of_module(network())
    expected = decompose_model(model, options("ce1", 3), module=network())
    for name in ("conv", "fc"):
        dense = torch.from_numpy(expected.factorizations[f"{name}.weight"].to_dense())
        torch.testing.assert_close(getattr(module, name).weight, dense, rtol=0, atol=1e-5)
    factors = factored_weights(module)
    stream = nnr_codec.encode(dense_state(module), factorizations=factors).data
    assert stream is not None
    images = torch.randn(2, 1, 6, 6)
    found = load_into(network(), stream)(images)
    torch.testing.assert_close(found, module(images), rtol=0, atol=0.05)


def test_outputs_are_what_is_kept_with_batches() -> None:
    """Where inputs have little variance, weights may change."""
    inputs = torch.randn(64, 40, generator=torch.Generator().manual_seed(0)) * 0.01
    inputs[:, :6] *= 1000
    errors = []
    for batches in ([inputs], None):
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
        with torch.no_grad():
            module[0].weight.copy_(torch.eye(40))
            module[0].bias.zero_()
            before = module(inputs)
            decompose_gradually(
                module, options("lr", 1.5), lambda given: None, steps=2, batches=batches
            )
            assert isinstance(module[1], FactorizedLayer)
            errors.append(float((module(inputs) - before).square().sum()))
    assert errors[0] < errors[1] / 10


def test_factorized_modules_are_decomposed_anew() -> None:
    module = network()
    decompose_gradually(module, options("lr", 2), lambda given: None, steps=1)
    decompose_gradually(module, options("lr", 5), lambda given: None, steps=1)
    assert count(network()) / count(module) >= 5


def test_what_is_out_of_reach_is_told_before_training() -> None:
    module = network()

    def train(given: nn.Module) -> None:
        pytest.fail("trained")

    with pytest.raises(InvalidOptions, match="compression_ratio: 1000"):
        decompose_gradually(module, options("lr", 1000), train)
    assert type(module.fc) is nn.Linear


@pytest.mark.parametrize(
    ("given", "steps", "named"),
    [
        (options("lr", None, rank=2), 3, "compression_ratio"),
        (options("none", 3), 3, "compression_ratio"),
        (options("lr", 3), 0, "steps: 0 is less than 1"),
    ],
)
def test_options_that_are_none(given: EncodeOptions, steps: int, named: str) -> None:
    with pytest.raises(InvalidOptions, match=named):
        decompose_gradually(network(), given, lambda module: None, steps=steps)


def test_weights_of_several_layers_are_refused() -> None:
    """Their other layers would stay dense, and the ratio would be missed."""
    module = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    module[3].weight = module[1].weight
    before = count(module)
    with pytest.raises(InvalidModel, match=r"'1\.weight'.*several layers.*decompose"):
        decompose_gradually(module, options("lr", 2.0), lambda module: None, steps=2)
    assert count(module) == before
    kept = (("[13].weight", {"decompose": "none"}),)
    other = replace(options("lr", 1.05), overrides=(*kept, ("0.weight", {"decompose": "lr"})))
    assert count(decompose_gradually(module, other, lambda module: None)) < before


def test_batches_that_end_are_refused() -> None:
    with pytest.raises(InvalidOptions, match=r"batches.*once only"):
        decompose_gradually(
            network(), options("lr", 2.0), lambda module: None, batches=iter([torch.ones(1)])
        )
