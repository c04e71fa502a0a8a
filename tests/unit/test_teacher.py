"""Distillation: what a student learns from a teacher, and what it is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from nnr_codec import InvalidModel, InvalidOptions  # noqa: E402
from nnr_codec.factorization.forms import LowRank  # noqa: E402
from nnr_codec.layers import factorize  # noqa: E402
from nnr_codec.training import Distillation, RateTraining, fine_tune  # noqa: E402


def teacher(outputs: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, outputs)
    )  # fmt: skip


def student(network: nn.Module) -> nn.Module:
    """Return a copy whose first layer has the rank 4."""
    copied = copy.deepcopy(network).eval()
    copied[2].p = 0.0
    left, values, right = np.linalg.svd(copied[0].weight.detach().numpy(), full_matrices=False)
    weight = LowRank((30, 12), (left[:, :4] * values[:4], right[:4]))
    return factorize(copied, {"0.weight": weight})


def inputs(count: int = 4) -> list[Any]:
    return list(torch.randn(count, 32, 12, generator=torch.Generator().manual_seed(1)))


def adam(module: nn.Module) -> Any:
    return torch.optim.Adam(module.parameters(), 3e-3)


def distance(module: nn.Module, network: nn.Module) -> float:
    """Return the mean divergence of the softmaxes on other inputs."""
    points = torch.randn(500, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = module.eval()(points).log_softmax(1)
        theirs = copy.deepcopy(network).eval()(points).log_softmax(1)
    return float(functional.kl_div(ours, theirs, log_target=True, reduction="batchmean"))


def test_the_loss_is_hintons() -> None:
    network = teacher()
    (points, *_), result = inputs(), torch.randn(32, 5)
    logits = copy.deepcopy(network).eval()(points)
    p, q = (functional.softmax(values / 3, 1) for values in (logits, result))
    expected = 0.25 * 3**2 * float((p * (p / q).log()).sum(1).mean().detach())
    distillation = Distillation(network, temperature=3, weight=0.25)
    loss = distillation.loss((points, torch.zeros(32, dtype=torch.long)), result)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_of_pixels_classes_are_second() -> None:
    network = nn.Conv2d(3, 4, 1)
    images, labels = torch.randn(2, 3, 5, 5), torch.zeros(2, 5, 5, dtype=torch.long)
    result = torch.randn(2, 4, 5, 5)
    p, q = (functional.softmax(values, 1) for values in (network(images), result))
    expected = float((p * (p / q).log()).sum(1).mean().detach())
    loss = Distillation(network, temperature=1).loss((images, labels), result)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_student_gets_nearer_without_any_targets() -> None:
    network = teacher()
    network[3].weight.data *= 8
    module = student(network)
    before = distance(module, network)
    fine_tune(module, adam(module), inputs(16), None, steps=150, distillation=Distillation(network))
    assert distance(module, network) < 0.6 * before


def test_values_are_compared_by_their_squares() -> None:
    network = teacher(1)
    module = student(network)
    batches = [(points, points[:, :1]) for points in inputs()]
    with torch.no_grad():
        gap = copy.deepcopy(network).eval()(batches[0][0]) - module(batches[0][0])
    distillation = Distillation(network, weight=2)
    found = distillation.loss(batches[0], module(batches[0][0]))
    assert float(found.detach()) == pytest.approx(2 * float(gap.square().mean()), rel=1e-5)
    losses = fine_tune(module, adam(module), inputs(), None, steps=80, distillation=distillation)
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) / 2


def test_it_is_added_to_the_loss_and_goes_with_rate_and_steps() -> None:
    network = teacher()
    module = student(network)
    network.train()
    calls = {"teacher": 0, "steps": 0}

    def count(part: Any, args: Any, output: Any) -> None:
        calls["teacher"] += 1
        assert not part.training
        assert not torch.is_grad_enabled()

    def after_step() -> None:
        calls["steps"] += 1

    rate = RateTraining(module, qp=-20, strength=0.5)
    points, labels = inputs()[0], torch.arange(32) % 5
    result = module(points)
    task = rate.loss(functional.cross_entropy)(result, labels).detach()
    distillation = Distillation(network, temperature=2, weight=0.5)
    expected = float(task) + float(distillation.loss((points, labels), result).detach())
    network.register_forward_hook(count)
    state = copy.deepcopy(network.state_dict())
    losses = fine_tune(
        module,
        adam(module),
        [(points, labels)],
        rate.loss(functional.cross_entropy),
        steps=3,
        distillation=distillation,
        after_step=after_step,
    )
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert calls == {"teacher": 3, "steps": 3}
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_teacher_that_would_change_is_refused() -> None:
    network = teacher()
    with pytest.raises(InvalidModel, match=r"'0\.weight': is the teacher's as well.*deep copy"):
        fine_tune(network, adam(network), inputs(), None, steps=1,
                  distillation=Distillation(network))  # fmt: skip
    network.requires_grad_(False)  # what is frozen may be shared
    module = nn.Sequential(network, nn.Linear(5, 5))
    fine_tune(module, adam(module), inputs(), None, steps=1, distillation=Distillation(network))


def test_statistics_that_are_the_teachers_are_refused() -> None:
    norm = nn.BatchNorm1d(5).requires_grad_(False)
    module = nn.Sequential(nn.Linear(5, 5), norm)
    with pytest.raises(InvalidModel, match="running_mean"):
        Distillation(nn.Sequential(norm)).check_student(module)


def test_batches_without_targets_need_no_loss() -> None:
    network = teacher()
    with pytest.raises(InvalidOptions, match=r"batches.*no pair"):
        fine_tune(network, adam(network), inputs(), nn.functional.cross_entropy, steps=1)


def test_other_shapes_are_refused() -> None:
    distillation = Distillation(teacher(4))
    with pytest.raises(InvalidModel, match=r"teacher.*\(32, 4\), the student's \(32, 5\)"):
        distillation.loss(inputs()[0], torch.zeros(32, 5))


def test_without_a_loss_there_has_to_be_a_teacher() -> None:
    module = teacher()
    with pytest.raises(InvalidOptions, match="loss"):
        fine_tune(module, adam(module), inputs(), None, steps=1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"weight": -1}, "weight"),
        ({"weight": math.nan}, "weight"),
        ({"outputs": "logits"}, "outputs"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidOptions, match=named):
        Distillation(teacher(), **options)
