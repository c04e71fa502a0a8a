"""Pruning of ranks: what goes first, what becomes of layers, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec import InvalidModel, InvalidOptions  # noqa: E402
from nnr_codec.factorization.forms import FORMS, FactoredWeight  # noqa: E402
from nnr_codec.layers import dense_state, factored_weights, factorize, load_into  # noqa: E402
from nnr_codec.training import RankPruning, RateTraining, fine_tune  # noqa: E402

RANKS = {"lr": (6,), "cp": (7,), "tucker2": (6, 5), "ht2": (5, 6, 4)}
SHAPE = (10, 8, 3, 3)


def weight(form: str, weak: dict[int, int] | None = None, scale: float = 1e-3) -> FactoredWeight:
    """Return random factors, with weak components: their indices by the number of the rank."""
    rng = np.random.default_rng(0)
    kind, ranks = FORMS[form], RANKS[form]
    factors = [rng.normal(0, 0.5, size) for size in kind.factor_shapes(SHAPE, ranks)]
    for rank, index in (weak or {}).items():
        factor, axis = kind.rank_places(len(factors))[rank][-1]
        np.moveaxis(factors[factor], axis, 0)[index] *= scale
    return kind(SHAPE, tuple(factors))


def network(form: str = "lr", weak: dict[int, int] | None = None) -> nn.Module:
    torch.manual_seed(0)
    module = dense_network()
    return factorize(module, {"0.weight": weight(form, weak)})


def dense_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(90, 4))


def batches(count: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 16, 8, 5, 5, generator=generator)
    return [(part, torch.arange(16) % 4) for part in images]


def total(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def trained(module: nn.Module, pruning: RankPruning, steps: int, **options: Any) -> Any:
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    loss = options.pop("loss", functional.cross_entropy)
    fine_tune(module, optimizer, batches(), loss, steps=steps, after_step=pruning.step)
    return optimizer


@pytest.mark.parametrize("form", RANKS)
def test_what_is_planted_as_useless_goes_first(form: str) -> None:
    weak = {rank: (rank + 2) % size for rank, size in enumerate(RANKS[form])}
    module = network(form, weak)
    before = [layout.to_factor(p).clone() for p, layout in module[0].factor_parameters()]
    kind = FORMS[form]
    fewer = [size - 1 for size in RANKS[form]]
    aim = total(module) - kind.parameters(SHAPE, RANKS[form]) + kind.parameters(SHAPE, fewer)
    pruning = RankPruning(module, batches(), parameters=aim, steps=1)
    pruning.step()
    assert pruning.ranks == {"0": tuple(fewer)}
    expected = [factor.clone() for factor in before]
    for places, index in zip(kind.rank_places(len(before)), weak.values(), strict=True):
        for factor, axis in places:
            expected[factor].select(axis, index).zero_()
    for (parameter, layout), factor in zip(module[0].factor_parameters(), expected, strict=True):
        assert torch.equal(layout.to_factor(parameter), factor)
    images = batches()[0][0]
    outputs = module(images)
    pruning.finish()
    assert module[0].ranks == tuple(fewer)
    assert total(module) == aim
    torch.testing.assert_close(module(images), outputs)


@pytest.mark.parametrize("form", RANKS)
def test_what_is_judged_is_the_derivative_by_the_scale_of_a_component(form: str) -> None:
    module = network(form).double()
    pruning = RankPruning(module, batches(), parameters=total(module) - 1, steps=1)
    (layer,) = pruning._layers
    images, labels = batches()[0]

    def loss() -> Any:
        return functional.cross_entropy(module(images.double()), labels)

    layer.add(torch.autograd.grad(loss(), layer.judging))
    squares = layer._squares
    for rank, places in enumerate(FORMS[form].rank_places(len(layer._factors))):
        factor, axis = places[0]
        parameter, layout = layer._factors[factor]
        for index in range(RANKS[form][rank]):
            values = []
            for scale in (1.001, 0.999 / 1.001):
                with torch.no_grad():
                    changed = layout.to_factor(parameter).clone()
                    changed.select(axis, index).mul_(scale)
                    parameter.copy_(layout.to_weight(changed))
                    values.append(float(loss()))
            with torch.no_grad():
                changed.select(axis, index).div_(0.999)
                parameter.copy_(layout.to_weight(changed))
            slope = (values[0] - values[1]) / 0.002
            assert float(squares[rank][index]) == pytest.approx(slope**2, rel=0.01, abs=1e-7)


@pytest.mark.parametrize("form", RANKS)
def test_ranks_get_no_less_than_one(form: str) -> None:
    module = network(form)
    ones = FORMS[form].parameters(SHAPE, [1] * len(RANKS[form]))
    least = total(module) - FORMS[form].parameters(SHAPE, RANKS[form]) + ones
    with pytest.raises(InvalidOptions, match=f"at ranks of 1 there are {least}"):
        RankPruning(module, batches(), parameters=least - 1, steps=4)
    pruning = RankPruning(module, batches(), parameters=least, steps=4, every=1)
    trained(module, pruning, 6)
    pruning.finish()
    assert set(module[0].ranks) == {1}
    assert total(module) == pruning.parameters == least


def test_pruned_components_stay_away_and_the_schedule_is_kept() -> None:
    module = network("tucker2")
    whole = total(module)
    aim = whole - 200
    counts, zeros = [], []
    pruning = RankPruning(module, batches(), parameters=aim, steps=8, every=3, judged=1)
    step = pruning.step

    def stepped() -> None:
        step()
        counts.append(pruning.parameters)
        zeros.append(int((module[0].expand.weight.flatten(1) == 0).all(0).sum()))

    pruning.step = stepped  # type: ignore[method-assign]
    optimizer = trained(module, pruning, 12)
    assert counts[:2] == [whole, whole]
    assert aim < counts[2] <= whole * (aim / whole) ** (3 / 8)
    assert counts[2] == counts[3] == counts[4]
    assert counts[7] < counts[5] <= whole * (aim / whole) ** (6 / 8)
    assert aim - 80 < counts[7] <= aim
    assert set(counts[7:]) == {counts[7]}
    assert zeros[7:] == [RANKS["tucker2"][0] - pruning.ranks["0"][0]] * 5
    assert any(bool(state["exp_avg"].any()) for state in optimizer.state.values())
    pruning.finish()
    pruning.finish()
    assert total(module) == counts[-1]


def test_it_goes_with_training_for_rate_and_into_a_stream() -> None:
    module = network("tucker2")
    rate = RateTraining(module, qp=-20, strength=0.1)
    pruning = RankPruning(module, batches(), parameters=total(module) - 200, steps=3, every=1)
    trained(module, pruning, 5, loss=rate.loss(functional.cross_entropy))
    with pytest.raises(InvalidModel, match="'0': is trained for rate"):
        pruning.finish()
    rate.finish()
    pruning.finish()
    stream = nnr_codec.encode(
        dense_state(module), options=rate.options(), factorizations=factored_weights(module)
    ).data
    again = load_into(dense_network(), stream)
    assert again[0].ranks == module[0].ranks
    images = batches()[0][0]
    # Biases are quantized, by steps of a 128th of their size.
    torch.testing.assert_close(again(images), module(images), rtol=1e-2, atol=1e-3)


def test_shared_and_frozen_factors_stay() -> None:
    module = nn.Sequential(network("cp"), network("cp"), network("cp"))
    module[1][0].requires_grad_(False)
    module[2][0].expand.weight = module[2][0].reduce.weight  # of no use: it is never run
    pruning = RankPruning(module, [], parameters=total(module), steps=1)
    assert list(pruning.ranks) == ["0.0"]
    with pytest.raises(InvalidOptions, match="no factorized layers"):
        RankPruning(module[1], [], parameters=10, steps=1)


def test_values_and_layers_that_do_not_run() -> None:
    module = network("lr")
    module.add_module("idle", network("lr")[0])
    module.forward = lambda images: module[1](module[0](images)).mean((2, 3))  # type: ignore[method-assign]
    saved = FORMS["lr"].parameters(SHAPE, (5,))
    pruning = RankPruning(
        module, [images for images, _ in batches()], parameters=total(module) - saved, steps=1
    )
    pruning.step()
    assert pruning.ranks == {"0": (6,), "idle": (1,)}


def test_gradients_that_are_not_finite_are_named() -> None:
    module = network("lr")
    module[3].weight.data *= 1e30
    with torch.no_grad():
        for parameter in module[0].parameters():
            parameter.mul_(1e6)
    pruning = RankPruning(module, batches(), parameters=total(module) - 1, steps=1)
    with pytest.raises(InvalidModel, match="outputs are not finite"):
        pruning.step()
    network_of_large = network("lr")
    pruning = RankPruning(network_of_large, batches(), parameters=500, steps=1)
    network_of_large[0].expand.weight.register_hook(lambda gradient: gradient * float("nan"))
    network_of_large[0].reduce.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(InvalidModel, match="'0': has gradients that are not finite"):
        pruning.step()


@pytest.mark.parametrize("named", ["steps", "every", "judged"])
def test_options_that_are_none(named: str) -> None:
    given = {"steps": 3, "every": 1, "judged": 1, named: 0}
    with pytest.raises(InvalidOptions, match=f"{named}: 0 is less than 1"):
        RankPruning(network(), batches(), parameters=1000, **given)


def test_fewer_steps_than_planned_lead_to_the_target_all_the_same() -> None:
    module = network()
    target = total(module) - 300
    pruning = RankPruning(module, batches(), parameters=target, steps=100)
    trained(module, pruning, 30)
    assert pruning.parameters > target
    pruning.finish()
    assert total(module) <= target
