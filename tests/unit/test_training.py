"""Training for low rank, fine-tuning and batch norm, on networks of a few weights."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.training import (
    LowRankProjection,
    fine_tune,
    fold_batch_norm,
    ranks_at_ratio,
    reestimate_batch_norm,
)

torch = pytest.importorskip("torch")
nn = torch.nn


def _network(seed: int = 5) -> Any:
    torch.manual_seed(seed)
    layers = {
        "first": nn.Conv2d(1, 12, 3, padding=1),
        "norm": nn.BatchNorm2d(12),
        "relu": nn.ReLU(),
        "conv": nn.Conv2d(12, 16, 3, padding=1),
        "depthwise": nn.Conv2d(16, 16, 3, groups=16),
        "pointwise": nn.Conv2d(16, 20, 1),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(20, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def _batches(count: int = 4) -> list[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(8)
    return [
        (torch.randn(6, 1, 5, 5, generator=generator), torch.arange(6) % 10) for _ in range(count)
    ]


def _matrix_rank(matrix: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(matrix, tol=1e-5 * np.linalg.norm(matrix, 2)))


def _weight(network: Any, name: str) -> np.ndarray:
    return network.get_parameter(name).detach().numpy().copy()


def test_projection_leaves_kernels_of_the_ranks() -> None:
    network = _network()
    untouched = _weight(network, "first.weight")
    before = _weight(network, "fc.weight")
    ranks = {"conv.weight": (5, 4), "pointwise.weight": 3, "fc.weight": 2}
    projection = LowRankProjection(network, ranks)
    assert not projection.is_projected
    factored = projection.project()
    assert projection.is_projected
    conv = _weight(network, "conv.weight")
    assert _matrix_rank(conv.reshape(16, -1)) == 5
    assert _matrix_rank(conv.swapaxes(0, 1).reshape(12, -1)) == 4
    assert _matrix_rank(_weight(network, "pointwise.weight").reshape(20, 16)) == 3
    left, values, right = np.linalg.svd(before.astype(np.float64), full_matrices=False)
    best = (left[:, :2] * values[:2]) @ right[:2]
    np.testing.assert_allclose(_weight(network, "fc.weight"), best, atol=1e-6)
    assert np.array_equal(_weight(network, "first.weight"), untouched)
    assert list(factored) == list(ranks)
    assert [weight.form for weight in factored.values()] == ["tucker2", "lr", "lr"]
    for name, weight in factored.items():
        assert np.array_equal(weight.to_dense(), _weight(network, name))


def test_projecting_again_changes_little() -> None:
    network = _network()
    projection = LowRankProjection(network, {"conv.weight": (5, 4), "fc.weight": 2})
    projection.project()
    once = [_weight(network, name) for name in projection.ranks]
    projection.project()
    for name, weight in zip(projection.ranks, once, strict=True):
        np.testing.assert_allclose(_weight(network, name), weight, atol=1e-6)


def test_tiles_have_the_rank_each() -> None:
    network = _network()
    before = _weight(network, "conv.weight").reshape(16, -1)
    projection = LowRankProjection(network, {"conv.weight": 2}, tiles=(3, 2))
    assert projection.project() == {}
    after = _weight(network, "conv.weight").reshape(16, -1)
    rows, columns = (0, 6, 11, 16), (0, 54, 108)
    for top, bottom in pairwise(rows):
        for start, end in pairwise(columns):
            tile = before[top:bottom, start:end].astype(np.float64)
            left, values, right = np.linalg.svd(tile, full_matrices=False)
            best = (left[:, :2] * values[:2]) @ right[:2]
            np.testing.assert_allclose(after[top:bottom, start:end], best, atol=1e-6)
    assert _matrix_rank(after) > 2


def test_steps_are_counted() -> None:
    network = _network()
    projection = LowRankProjection(network, {"fc.weight": 1}, every=3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    seen = []

    def after_step() -> None:
        projection.step()
        rank = _matrix_rank(_weight(network, "fc.weight"))
        seen.append((projection.is_projected, rank == 1))

    fine_tune(network, optimizer, _batches(), nn.CrossEntropyLoss(), steps=7, after_step=after_step)
    assert seen == [(number % 3 == 0, number % 3 == 0) for number in range(1, 8)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ranks": {"fc.bias": 1}}, "fc.bias"),
        ({"ranks": {"gone.weight": 1}}, r"no parameter 'gone\.weight'"),
        ({"ranks": {"fc.weight": 11}}, r"rank: 'fc\.weight': lr: ranks \[11\]"),
        ({"ranks": {"fc.weight": 0}}, r"fc\.weight"),
        ({"ranks": {"fc.weight": (2, 2)}}, r"'fc\.weight': tucker2: no form"),
        ({"ranks": {"fc.weight": 2.5}}, r"'fc\.weight': 2\.5 is neither a rank nor two"),
        ({"ranks": {"conv.weight": (2, 2, 2)}}, r"'conv\.weight': \(2, 2, 2\) is neither"),
        ({"ranks": {"fc.weight": 6}, "tiles": (2, 1)}, "rank 6, and tiles of 5 x 20"),
        ({"ranks": {}, "tiles": (0, 1)}, "tiles"),
        ({"ranks": {}, "every": 0}, "every: 0 is less"),
    ],
)
def test_impossible_projections_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidOptions, match=reason):
        LowRankProjection(_network(), **options)


@pytest.mark.parametrize("options", [{}, {"tiles": (2, 1)}])
@pytest.mark.parametrize("rank", [2, (2, 2)])
def test_kernels_that_are_not_finite_are_named(rank: Any, options: dict[str, Any]) -> None:
    network = _network()
    network.conv.weight.data[0, 0, 0, 0] = float("nan")
    projection = LowRankProjection(network, {"conv.weight": rank}, **options)
    with pytest.raises(InvalidModel, match=r"'conv\.weight': holds NaN"):
        projection.project()


def test_ranks_of_any_whole_numbers() -> None:
    ranks = {"fc.weight": np.int64(2), "conv.weight": [np.int32(3), 2]}
    projection = LowRankProjection(_network(), ranks)
    assert projection.ranks == {"fc.weight": 2, "conv.weight": (3, 2)}
    assert [weight.ranks for weight in projection.project().values()] == [(2,), (3, 2)]


def _parameters(network: Any, ranks: dict[str, Any]) -> dict[str, int]:
    factored = LowRankProjection(network, ranks).project()
    return {name: weight.parameter_count for name, weight in factored.items()}


@pytest.mark.parametrize("ratio", [1.5, 2.0, 4.0])
def test_ranks_at_a_ratio(ratio: float) -> None:
    network = _network()
    ranks = ranks_at_ratio(network, ratio)
    assert list(ranks) == ["conv.weight", "pointwise.weight", "fc.weight"]
    assert [isinstance(rank, int) for rank in ranks.values()] == [False, True, True]
    for name, count in _parameters(network, ranks).items():
        assert count <= network.get_parameter(name).numel() / ratio
    larger = {
        "pointwise.weight": ranks["pointwise.weight"] + 1,
        "fc.weight": ranks["fc.weight"] + 1,
    }
    for name, count in _parameters(network, larger).items():
        assert count > network.get_parameter(name).numel() / ratio
    outputs, inputs = ranks["conv.weight"]
    both = {"conv.weight": (outputs + 1, inputs + 1)}
    assert _parameters(network, both)["conv.weight"] > 16 * 12 * 9 / ratio


def test_ranks_of_the_rule_by_hand() -> None:
    """⌊m·n / (c·(m + n))⌋ with m·n = 16·108, and with tiles ⌊m·n / (c·(2m + 3n))⌋."""
    network = _network()
    assert ranks_at_ratio(network, 3, form="lr")["conv.weight"] == 16 * 108 // (3 * (16 + 108))
    tiled = ranks_at_ratio(network, 2, form="lr", tiles=(3, 2))
    assert tiled["conv.weight"] == 16 * 108 // (2 * (2 * 16 + 3 * 108))


def test_ranks_of_what_is_wanted() -> None:
    assert list(ranks_at_ratio(_network(), 2, only=["first.weight", "fc.weight"])) == ["fc.weight"]


def test_ratios_that_nothing_can_have() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert ranks_at_ratio(network, 1.5) == {}
    with pytest.raises(InvalidOptions, match="ratio"):
        ranks_at_ratio(network, 1)
    with pytest.raises(InvalidOptions, match="ratio: inf"):
        ranks_at_ratio(network, math.inf)
    with pytest.raises(InvalidOptions, match="form: 'cp' is neither"):
        ranks_at_ratio(network, 2, form="cp")  # type: ignore[arg-type]


def _trained(seed: int, steps: int = 6) -> tuple[Any, list[float]]:
    network = _network(seed)
    projection = LowRankProjection(network, ranks_at_ratio(network, 2), every=2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = fine_tune(
        network,
        optimizer,
        _batches(),
        nn.CrossEntropyLoss(),
        steps=steps,
        after_step=projection.step,
    )
    return network, losses


def test_training_is_determined_by_the_seed() -> None:
    (first, losses), (second, again), (_, other) = _trained(1), _trained(1), _trained(2)
    assert losses == again
    assert losses != other
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_fine_tuning_lowers_the_loss_and_restores_modes() -> None:
    network = _network()
    network.eval()
    network.norm.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = fine_tune(network, optimizer, _batches(2), nn.CrossEntropyLoss(), steps=40)
    assert len(losses) == 40
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert not network.training
    assert not network.conv.training
    assert network.norm.training


def test_fine_tuning_says_what_is_wrong() -> None:
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(InvalidOptions, match="no more after 2"):
        fine_tune(network, optimizer, iter(_batches(2)), nn.CrossEntropyLoss(), steps=3)
    network.fc.bias.data[0] = float("nan")
    with pytest.raises(InvalidModel, match="nan in step 0"):
        fine_tune(network, optimizer, _batches(), nn.CrossEntropyLoss(), steps=3)


def test_batch_norm_has_the_statistics_of_all_samples() -> None:
    network = _network()
    network.train()
    network.depthwise.eval()
    batches = _batches(3)
    names = reestimate_batch_norm(network, [batches[0][0], batches[1], (batches[2][0][:2], None)])
    images = torch.cat([batches[0][0], batches[1][0], batches[2][0][:2]])
    with torch.no_grad():
        seen = network.first(images).double().numpy()
    assert names == ("norm",)
    mean = seen.mean(axis=(0, 2, 3))
    variance = seen.var(axis=(0, 2, 3), ddof=1)
    np.testing.assert_allclose(network.norm.running_mean.numpy(), mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(network.norm.running_var.numpy(), variance, rtol=1e-5)


def test_batch_norm_after_batch_norm_sees_normalized_batches() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3), nn.BatchNorm1d(3))
    network[0].running_mean += 7  # what evaluation would work with
    values = 5 * torch.randn(50, 4) + 2
    reestimate_batch_norm(network, [values])
    with torch.no_grad():
        normal = (values - values.mean(0)) / (values.var(0, unbiased=False) + 1e-5).sqrt()
        seen = network[1](normal)
    np.testing.assert_allclose(network[2].running_mean, seen.mean(0), atol=1e-5)
    np.testing.assert_allclose(network[2].running_var, seen.var(0), rtol=1e-4)


def test_folded_batch_norm_is_the_same_in_evaluation() -> None:
    module = _network()
    fine_tune(module, torch.optim.SGD(module.parameters(), 0.1), _batches(),
              nn.functional.cross_entropy, steps=5)  # fmt: skip
    module.append(nn.BatchNorm1d(10, affine=False))  # has no scale: stays as it is
    module.eval()
    images = torch.cat([images for images, _ in _batches()])
    before, weights = module(images), module.conv.weight.clone()
    assert fold_batch_norm(module) == ("norm",)
    assert not module.norm.running_mean.any()
    assert bool((module.norm.running_var == 1).all())
    assert torch.allclose(module(images), before, atol=1e-5)
    assert torch.equal(module.conv.weight, weights)
    folded = module.norm.weight.clone()
    assert fold_batch_norm(module) == ("norm",)
    assert torch.allclose(module.norm.weight, folded)
    with pytest.raises(InvalidModel, match=r"norm.*folded"):
        reestimate_batch_norm(module, _batches())
    module.norm.running_var.fill_(-1.0)
    assert fold_batch_norm(module) == ()
    assert fold_batch_norm(_network().bfloat16()) == ()
    shared = nn.ModuleList([nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)])
    shared[1].weight, shared[1].bias = shared[0].weight, shared[0].bias
    assert fold_batch_norm(shared) == ("2",)


def test_batch_norm_keeps_all_else() -> None:
    network = _network()
    network.norm.momentum = 0.3
    network.norm.num_batches_tracked += 4
    network.eval()
    network.fc.train()
    idle = nn.BatchNorm2d(2)
    without = nn.BatchNorm2d(2, track_running_stats=False)
    network.add_module("idle", nn.Identity())
    network.idle.inner = idle
    network.idle.without = without
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert reestimate_batch_norm(network, _batches()) == ("norm",)
    for name, tensor in network.state_dict().items():
        changed = name in ("norm.running_mean", "norm.running_var")
        assert torch.equal(tensor, state[name]) != changed, name
    assert network.norm.momentum == 0.3
    assert not network.norm.training
    assert network.fc.training
    assert not network.norm._forward_pre_hooks


def test_batch_norm_needs_samples() -> None:
    with pytest.raises(InvalidOptions, match="batches"):
        reestimate_batch_norm(_network(), [])
    with pytest.raises(InvalidModel, match="'norm': what the layer sees"):
        reestimate_batch_norm(_network(), [torch.full((2, 1, 5, 5), float("nan"))])
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for count in (0, 1):
        with pytest.raises(InvalidOptions, match=f"batches: '1' gets {count} values of each"):
            reestimate_batch_norm(network, [torch.zeros(5, 3), torch.zeros(count, 3)])


def test_batch_norm_that_is_called_by_keyword() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, values: Any) -> Any:
            return self.norm(input=values)

    network = Called()
    assert reestimate_batch_norm(network, [torch.tensor([[1.0, 2], [3, 6]])]) == ("norm",)
    assert network.norm.running_mean.tolist() == [2, 4]
    assert network.norm.running_var.tolist() == [2, 8]
