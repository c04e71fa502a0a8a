"""Forms chosen for the fewest bytes by what a calibration knows of the network's result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from decompose_support import forms, options  # noqa: E402
from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec.calibration.calibrate import calibrate  # noqa: E402
from nnr_codec.calibration.gradients import OutputGradients  # noqa: E402
from nnr_codec.calibration.moments import Calibration  # noqa: E402
from nnr_codec.checkpoints.torch_tensors import model_of_module  # noqa: E402
from nnr_codec.decompose import decompose_model  # noqa: E402

QP, RANK, WIDTH = -22, 4, 96


@pytest.fixture(scope="module")
def network() -> Any:
    """Return a network of two hidden layers, the weight of one of which is of low rank."""
    torch.manual_seed(0)
    module: Any = nn.Sequential(
        *(nn.Linear(32, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()),
        *(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)),
    )
    low = torch.randn(WIDTH, RANK) @ torch.randn(RANK, WIDTH) * 0.05
    with torch.no_grad():
        module[4].weight.copy_(low + 0.001 * torch.randn(WIDTH, WIDTH))
    return module


@pytest.fixture(scope="module")
def calibration(network: Any) -> Calibration:
    return calibrate(network, [torch.randn(400, 32)], gradients=OutputGradients(network))


def _divergence(network: Any, tensors: Any) -> float:
    inputs = torch.randn(2000, 32, generator=torch.Generator().manual_seed(1))
    decoded = {name: torch.from_numpy(array) for name, array in tensors.items()}
    with torch.no_grad():
        before = network(inputs).log_softmax(1)
        after = torch.func.functional_call(network, decoded, inputs).log_softmax(1)
    return float((before.exp() * (before - after)).sum(1).mean())


def test_low_rank_is_found_at_no_larger_divergence(network: Any, calibration: Calibration) -> None:
    chosen = options("auto", qp=QP)
    found = decompose_model(model_of_module(network), chosen, calibration=calibration)
    assert forms(found) == {"4.weight": "lr"}
    assert found.factorizations["4.weight"].ranks[0] <= 2 * RANK

    auto = nnr_codec.encode(network, options=chosen, calibration=calibration)
    dense = nnr_codec.encode(network, options=options(qp=QP), calibration=calibration)
    of_weight = [next(t for t in r.report.tensors if t.name == "4.weight") for r in (auto, dense)]
    losses = [tensor.result_loss for tensor in of_weight]
    assert losses[0] is not None
    assert losses[1] is not None
    assert 0 < losses[0] < 1.1 * losses[1]
    assert of_weight[0].bytes < 0.4 * of_weight[1].bytes
    divergences = [_divergence(network, nnr_codec.decode(r.data or b"")) for r in (auto, dense)]
    assert divergences[0] < 1.1 * divergences[1]


def test_what_stays_dense_is_as_it_was_compared(network: Any, calibration: Calibration) -> None:
    """Factors move no qp of others, and each has its own."""
    auto = nnr_codec.encode(network, options=options("auto", qp=QP), calibration=calibration)
    dense = nnr_codec.encode(network, options=options(qp=QP), calibration=calibration)
    for one, other in zip(auto.report.tensors, dense.report.tensors, strict=True):
        if one.name != "4.weight":
            assert (one.qp, one.squared_error) == (other.qp, other.squared_error), one.name


def test_options_of_the_user_win(network: Any, calibration: Calibration) -> None:
    chosen = options("auto", qp=QP, overrides=(("2.weight", {"qp": -40}),))
    report = nnr_codec.encode(network, options=chosen, calibration=calibration).report
    assert next(t.qp for t in report.tensors if t.name == "2.weight") == -40


def test_moments_of_gradients_serve_where_inputs_are_not_known(network: Any) -> None:
    gradients = OutputGradients(network)
    known = calibrate(network, [torch.randn(400, 32)], only=(), gradients=gradients)
    model = model_of_module(network)
    plain = decompose_model(model, options("lr", rank=8)).factorizations["2.weight"]
    aware = decompose_model(model, options("lr", rank=8), calibration=known)
    made = aware.factorizations["2.weight"]
    columns: Any = known.result["2.weight"].columns
    errors = [w.to_dense() - model["2.weight"].read() for w in (made, plain)]
    by_result = [float(np.vdot(error @ columns[0, 0], error)) for error in errors]
    assert by_result[0] < 0.9 * by_result[1]
