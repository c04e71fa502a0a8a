"""Calibrations that tell little, or of odd modules: the result is never worse than without data."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec import EncodeOptions  # noqa: E402

INPUTS, CLASSES = 32, 8


def noise(count: int, seed: int) -> Any:
    return torch.randn((count, INPUTS), generator=torch.Generator().manual_seed(seed))


SAMPLES, TEST = noise(200, 1), noise(800, 2)


def network(inputs: int = INPUTS) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(),
                         nn.Linear(64, CLASSES))  # fmt: skip


class Repeated(nn.Module):
    """One layer is called four times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.last = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, CLASSES)

    def forward(self, values: Any) -> Any:
        for _ in range(4):
            values = values + torch.relu(self.inner(values))
        return self.last(values)


class Forked(nn.Module):
    """Samples take one way if their first value is positive, and the other way else."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(INPUTS, 64), nn.Linear(64, CLASSES)
        self.way, self.other = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, values: Any) -> Any:
        inner, is_positive = torch.relu(self.first(values)), values[:, :1] > 0
        if bool(is_positive.all()):
            return self.last(torch.relu(self.way(inner)))
        both = torch.where(is_positive, self.way(inner), self.other(inner))
        return self.last(torch.relu(both))


class Dead(nn.Module):
    """Half of the units never become positive."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        with torch.no_grad():
            self.inner[0].bias[:48] -= 20

    def forward(self, values: Any) -> Any:
        return self.inner(values)


def of_rank(rank: int, values: Any) -> Any:
    """Return values within a subspace, of about the same size."""
    basis = torch.linalg.qr(noise(INPUTS, 3))[0][:, :rank]
    return values @ basis @ basis.T * (INPUTS / rank) ** 0.5


def with_first(values: Any, constant: float) -> Any:
    changed = values.clone()
    changed[:, : INPUTS // 2] = constant
    return changed


def positive(values: Any) -> Any:
    changed = values.clone()
    changed[:, 0] = changed[:, 0].abs()
    return changed


CASES: dict[str, tuple[Callable[[], Any], Any, Any]] = {  # module, samples, test
    "one sample": (network, SAMPLES[:1], TEST),
    "ten samples": (network, SAMPLES[:10], TEST),
    "ten times the same": (network, SAMPLES[:1].repeat(10, 1), TEST),
    "deficient rank": (network, of_rank(4, SAMPLES), of_rank(4, TEST)),
    "ten of deficient rank": (network, of_rank(4, SAMPLES[:10]), of_rank(4, TEST)),
    "deficient rank, others in use": (network, of_rank(4, SAMPLES), TEST),
    "dead inputs": (network, with_first(SAMPLES, 0), with_first(TEST, 0)),
    "dead inputs that come alive": (network, with_first(SAMPLES, 0), TEST),
    "constant channels": (network, with_first(SAMPLES, 3), with_first(TEST, 3)),
    "dead units": (Dead, SAMPLES, TEST),
    "called four times": (Repeated, SAMPLES[:10], TEST),
    "never reached": (Forked, positive(SAMPLES), TEST),
    "bfloat16": (lambda: network().bfloat16(), SAMPLES.bfloat16(), TEST.bfloat16()),
    "float16": (lambda: network().half(), SAMPLES.half(), TEST.half()),
}


def divergence(module: Any, data: bytes | None, test: Any) -> float:
    """Return the KL divergence of a network's output with decoded weights."""
    other = copy.deepcopy(module)
    types = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    arrays = nnr_codec.decode(data or b"")
    other.load_state_dict(
        {
            name: torch.tensor(array.astype(np.float32)).to(types[name])
            for name, array in arrays.items()
        }
    )
    with torch.no_grad():
        logs, others = (torch.log_softmax(each(test).double(), -1) for each in (module, other))
    return float((logs.exp() * (logs - others)).sum(-1).mean())


def point(module: Any, test: Any, qp: int, samples: Any = None) -> tuple[int, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nnr_codec.NnrWarning)
        batches = None if samples is None else [samples]
        data = nnr_codec.encode(module, options=EncodeOptions(qp=qp), calibration=batches).data
    return len(data or b""), divergence(module, data, test)


@pytest.mark.parametrize("case", CASES)
def test_never_worse_than_without_data(case: str) -> None:
    make, samples, test = CASES[case]
    module = make().eval()
    curve = np.log([point(module, test, qp) for qp in range(-14, -46, -4)])
    assert (np.diff(curve[:, 0]) > 0).all()
    for qp in (-32, -26, -20):
        size, lost = point(module, test, qp, samples)
        assert lost < np.exp(np.interp(np.log(size), curve[:, 0], curve[:, 1]))
