"""Encoding weights as factors with a calibration, which knows the dense weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec import EncodeOptions  # noqa: E402
from nnr_codec.calibration.calibrate import calibrate  # noqa: E402
from nnr_codec.calibration.gradients import OutputGradients  # noqa: E402
from nnr_codec.calibration.moments import Calibration  # noqa: E402
from nnr_codec.checkpoints.torch_tensors import model_of_module  # noqa: E402
from nnr_codec.decompose import decompose_model  # noqa: E402
from nnr_codec.options import DecompositionOptions  # noqa: E402

LAYERS = ("2.weight", "4.weight")
FORMS: dict[str, dict[str, Any]] = {
    "lr": {"rank": 10},
    "cp": {"rank": 30},
    "tucker2": {"rank": 0.6},
    "ht2": {"rank": 0.6},
    "joint": {"rank": 10},
}


@pytest.fixture(scope="module")
def network() -> Any:
    """Return a network of convolutions, two of which can share factors."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))


@pytest.fixture(scope="module")
def calibration(network: Any) -> Calibration:
    batches = [torch.rand(100, 3, 8, 8) for _ in range(4)]
    return calibrate(network, batches, gradients=OutputGradients(network))


def _outputs(network: Any, tensors: Any) -> Any:
    inputs = torch.rand(500, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    parameters = {name: torch.as_tensor(array) for name, array in tensors.items()}
    with torch.no_grad():
        return torch.func.functional_call(network, parameters, inputs).double().log_softmax(1)


@pytest.mark.parametrize("form", FORMS)
def test_errors_of_factors_are_fed_back(form: str, network: Any, calibration: Calibration) -> None:
    """At the same fine step, the result is much closer to that of the factors as given."""
    chosen = EncodeOptions(decomposition=DecompositionOptions(form, **FORMS[form]))  # type: ignore[arg-type]
    factored = decompose_model(model_of_module(network), chosen, calibration=calibration)
    weights = {name: factored.factorizations[name] for name in LAYERS}
    tensors = {name: p.read() for name, p in model_of_module(network).items()}
    before = _outputs(network, tensors | {name: w.to_dense() for name, w in weights.items()})

    options = EncodeOptions(
        allocation=False, overrides=(("*", {"qp": -50}), ("[24].weight", {"qp": -26}))
    )
    blind = replace(
        calibration,
        moments={},
        result={name: m for name, m in calibration.result.items() if name not in LAYERS},
    )
    divergences = []
    for known in (calibration, blind):
        coded = nnr_codec.encode(network, None, options, factorizations=weights, calibration=known)
        after = _outputs(network, nnr_codec.decode(coded.data or b""))
        divergences.append(float((before.exp() * (before - after)).sum(1).mean()))
    assert divergences[0] < 0.7 * divergences[1]


def test_factors_of_a_block_have_steps_of_their_own(network: Any, calibration: Calibration) -> None:
    chosen = EncodeOptions(qp=-24, decomposition=DecompositionOptions("lr", rank=10))
    report = nnr_codec.encode(network, None, chosen, calibration=calibration).report
    for name in LAYERS:
        weight = next(tensor for tensor in report.tensors if tensor.name == name)
        left, right = weight.factors
        assert left.qp != right.qp
        assert weight.result_loss == (left.result_loss or 0) + (right.result_loss or 0) > 0


def test_scales_between_factors_do_not_matter(network: Any, calibration: Calibration) -> None:
    """A factor made larger, and the other smaller, get steps that are so, too."""
    chosen = EncodeOptions(qp=-24, decomposition=DecompositionOptions("lr", rank=10))
    made = decompose_model(model_of_module(network), chosen, calibration=calibration)
    weight = made.factorizations[LAYERS[0]]
    qps = []
    for scale in (1, 64):
        left, right = weight.factors
        scaled = {LAYERS[0]: type(weight)(weight.shape, (left * scale, right / scale))}
        plain = EncodeOptions(qp=-24)
        coded = nnr_codec.encode(
            network, None, plain, factorizations=scaled, calibration=calibration
        )
        tensor = next(t for t in coded.report.tensors if t.name == LAYERS[0])
        qps.append([factor.qp or 0 for factor in tensor.factors])
    octaves = 6 << chosen.qp_density  # log2 of 64
    assert abs(qps[1][0] - qps[0][0] - octaves) <= 1
    assert abs(qps[0][1] - qps[1][1] - octaves) <= 1
