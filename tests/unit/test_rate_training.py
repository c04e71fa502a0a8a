"""Training for rate: what the network runs on, what it costs, and what the encoder makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec import InvalidModel, InvalidOptions  # noqa: E402
from nnr_codec.factorization.forms import LowRank  # noqa: E402
from nnr_codec.layers import dense_state, factored_weights, factorize  # noqa: E402
from nnr_codec.options import DecompositionOptions  # noqa: E402
from nnr_codec.training import RateTraining, fine_tune, relative_qps  # noqa: E402

QP = -12
STEP = 2.0**-3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 36, 10),
    )  # fmt: skip


def batches(count: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 32, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (count, 32), generator=generator)
    return list(zip(images, labels, strict=True))


def trained(strength: float, module: nn.Module, steps: int = 60) -> RateTraining:
    rate = RateTraining(module, qp=QP, strength=strength)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    loss = rate.loss(functional.cross_entropy)
    fine_tune(module, optimizer, batches(), loss, steps=steps)
    return rate


def test_the_network_runs_on_what_is_decoded() -> None:
    module = network()
    parameters = list(module.parameters())
    weight = module[0].weight.detach().clone()
    rate = RateTraining(module, qp=QP, strength=0.1)
    assert [id(p) for p in module.parameters()] != []
    assert {id(p) for p in module.parameters()} == {id(p) for p in parameters}
    wanted = torch.round(weight / STEP) * STEP
    assert torch.equal(module[0].weight, wanted)
    outputs = module.eval()(batches()[0][0])
    rate.finish()
    assert torch.equal(module(batches()[0][0]), outputs)
    assert list(module.state_dict()) == list(network().state_dict())


def test_the_stream_has_what_was_trained() -> None:
    module = network()
    rate = trained(0.05, module)
    rate.finish()
    data = nnr_codec.encode(module, options=rate.options()).data
    decoded = nnr_codec.decode(data)
    for name, tensor in module.state_dict().items():
        if tensor.dim() > 1:
            assert np.array_equal(decoded[name], tensor.numpy()), name
            assert len(np.unique(tensor.numpy() / STEP % 1)) == 1


def test_weights_may_stay_as_they_are() -> None:
    module = network()
    own = module[0].weight.detach().clone()
    rate = RateTraining(module, qp=QP, strength=0.1, unrounded=True)
    assert torch.equal(module[0].weight, own)
    rate.bits().backward()
    assert module[0].weight.grad.abs().sum() > 0
    rate.finish()
    assert torch.equal(module[0].weight, own)
    with pytest.raises(InvalidOptions, match="encode with calibration"):
        rate.options()


def test_strength_saves_bytes() -> None:
    sizes = []
    for strength in (0.0, 0.3, 3.0):
        module = network()
        rate = trained(strength, module)
        rate.finish()
        sizes.append(len(nnr_codec.encode(module, options=rate.options()).data or b""))
    assert sizes[2] < 0.8 * sizes[1] < 0.8 * sizes[0]


def test_the_estimate_is_near_what_the_coder_takes() -> None:
    torch.manual_seed(0)
    module = nn.Linear(500, 400, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.distributions.Laplace(0.0, 0.2).sample((400, 500)))
    rate = RateTraining(module, qp=QP, strength=1.0)
    estimate = float(rate.bits().detach()) / 8
    rate.finish()
    assert estimate == pytest.approx(
        len(nnr_codec.encode(module, options=rate.options()).data or b""), rel=0.05
    )


def test_gradients_draw_to_cheaper_integers() -> None:
    module = nn.Linear(50, 40, bias=False)
    rate = RateTraining(module, qp=QP, strength=1.0)
    (weight,) = module.parameters()
    rate.bits().backward()
    assert bool((torch.sign(weight.grad) == torch.sign(weight)).all())


def test_factors_and_shared_parameters() -> None:
    """Layers on factors train for rate like others; what two layers share is counted once."""
    rng = np.random.default_rng(0)
    module = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.Linear(30, 30))
    module[3].weight = module[2].weight
    factors = tuple(rng.normal(0, 0.3, s).astype(np.float32) for s in ((30, 4), (4, 20)))
    factorize(module, {"0.weight": LowRank((30, 20), factors)})
    rate = RateTraining(module, qp=QP, strength=1.0)
    assert sum(w.parameter.numel() for w in rate._weights) == 30 * 4 + 4 * 20 + 900
    assert torch.equal(module[3].weight, module[2].weight)
    rate.bits().backward()
    module(torch.randn(3, 20)).sum().backward()
    rate.finish()
    assert module[3].weight is not None
    for layer in (module[0][0], module[0][1], module[2], module[3]):
        assert torch.equal(torch.round(layer.weight / STEP) * STEP, layer.weight)


def test_steps_by_the_sizes_of_weights() -> None:
    module = network()
    with torch.no_grad():
        module[0].weight.mul_(8)
    qps = relative_qps(module, 0.5)
    assert list(qps) == ["0.weight", "4.weight"]
    for name, qp in qps.items():
        size = float(module.get_parameter(name).detach().square().mean().sqrt())
        step = 2.0 ** (qp // 4) * (1 + qp % 4 / 4)
        assert step <= 0.5 * size < 1.26 * step
    rate = RateTraining(module, qp=qps, strength=0.1)
    rate.finish()
    data = nnr_codec.encode(module, options=rate.options()).data
    decoded = nnr_codec.decode(data)
    for name in qps:
        assert np.array_equal(decoded[name], module.state_dict()[name].numpy()), name


def test_factors_keep_their_steps_in_the_stream() -> None:
    rng = np.random.default_rng(0)
    module = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    factors = tuple(
        rng.normal(0, s, d).astype(np.float32) for s, d in ((0.3, (30, 4)), (2.0, (4, 20)))
    )
    factorize(module, {"0.weight": LowRank((30, 20), factors)})
    rate = RateTraining(module, qp=relative_qps(module, 0.5), strength=0.1)
    assert len(set(rate.qps.values())) == 3
    rate.finish()
    wanted = factored_weights(module)
    for carriage in ("dc", "factors"):
        options = rate.options(factored=True)
        decomposition = DecompositionOptions(carriage=carriage)
        result = nnr_codec.encode(
            dense_state(module),
            options=replace(options, decomposition=decomposition),
            factorizations=wanted,
        )
        assert result.report.unmatched == ()  # biases of factorized layers are among them
        decoded = nnr_codec.decode(result.data, layers="factorized")
        coded = sorted(name for name in decoded if name.startswith("0.weight"))
        for name, factor in zip(coded, wanted["0.weight"].factors, strict=True):
            assert np.array_equal(decoded[name], factor), (carriage, name)


def test_a_weight_of_zeros_costs_nothing() -> None:
    module = nn.Linear(30, 20, bias=False)
    with torch.no_grad():
        module.weight.mul_(1e-9)
    rate = RateTraining(module, qp=QP, strength=1.0)
    assert 0 <= float(rate.bits().detach()) < 0.1
    rate.bits().backward()
    assert bool(torch.isfinite(next(module.parameters()).grad).all())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"strength": -1.0}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"qp": -100_000}, "qp"),
        ({"qp": {"0.weight": -12}}, "'4.weight' has none"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidOptions, match=named):
        RateTraining(network(), **{"qp": QP, "strength": 1.0, **options})


def test_modules_that_cannot() -> None:
    with pytest.raises(InvalidOptions, match="no weights"):
        RateTraining(nn.BatchNorm1d(4), qp=QP, strength=1.0)
    module = network()
    RateTraining(module, qp=QP, strength=1.0)
    with pytest.raises(InvalidOptions, match="parametrized"):
        RateTraining(module, qp=QP, strength=1.0)


@pytest.mark.parametrize("fraction", [0.0, -1.0, float("nan"), float("inf")])
def test_fractions_that_are_none(fraction: float) -> None:
    with pytest.raises(InvalidOptions, match="fraction"):
        relative_qps(network(), fraction)


def test_weights_without_a_size() -> None:
    """Such as a layer that begins with 0: it has the qp of the others."""
    module = network()
    qps = relative_qps(module, 1.0)
    with torch.no_grad():
        module[4].weight.zero_()
    assert relative_qps(module, 1.0) == {"0.weight": qps["0.weight"], "4.weight": qps["0.weight"]}
    with torch.no_grad():
        module[0].weight.zero_()
    with pytest.raises(InvalidModel, match="0"):
        relative_qps(module, 1.0)
    with torch.no_grad():
        module[4].weight[0, 0] = float("nan")
    with pytest.raises(InvalidModel, match=r"4\.weight"):
        relative_qps(module, 1.0)


def test_what_was_not_trained_keeps_its_usual_step() -> None:
    """Statistics of batch norm that are not folded, and buffers, are as fine as ever."""
    module = network()
    module.register_buffer("frequencies", torch.logspace(-5, 0, 32))
    module[1].running_var.copy_(torch.logspace(-4, 1, 12))
    rate = RateTraining(module, qp=QP, strength=0.1)
    rate.finish()
    decoded = nnr_codec.decode(nnr_codec.encode(module, options=rate.options()).data)
    for name in ("frequencies", "1.running_var"):
        assert decoded[name] == pytest.approx(module.state_dict()[name].numpy(), abs=2e-5)


def test_names_that_are_globs() -> None:
    module = nn.ModuleDict({"a*": nn.Linear(6, 5, bias=False), "ab": nn.Linear(6, 5, bias=False)})
    rate = RateTraining(module, qp={"a*.weight": -4, "ab.weight": -24}, strength=0.1)
    rate.finish()
    result = nnr_codec.encode(module, options=rate.options())
    assert {tensor.name: tensor.qp for tensor in result.report.tensors} == rate.qps


def test_half_precision_and_a_teacher_alone() -> None:
    module = nn.Linear(1000, 1000, bias=False).half()
    rate = RateTraining(module, qp=-24, strength=2.0)
    assert 1e6 < float(rate.bits().detach()) < 1e7
    alone = float(rate.loss(None)(None, None).detach())
    assert alone == pytest.approx(2.0 * float(rate.bits().detach()) / 1e6)
    assert float(rate.loss(lambda outputs, targets: torch.tensor(3.0))(0, 0)) > 2.9 + alone


def test_a_parameter_that_is_called_like_a_parametrized_one() -> None:
    module = nn.Module()
    module.original_weight = nn.Parameter(torch.ones(3, 3))
    assert RateTraining(module, qp=QP, strength=0.1).qps == {"original_weight": QP}
