"""A network of layers of all kinds, and a stream of it: for the tests of loading into modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import nnr_codec
from nnr_codec.cli import decode as decode_command
from nnr_codec.factorization.forms import FORMS, FactoredWeight

FINE = nnr_codec.EncodeOptions(qp=-60)
FACTORED = {
    "stem.weight": "tucker2",
    "first.weight": "joint_right",
    "second.weight": "joint_right",
    "down.weight": "ht2",
    "wide.weight": "cp",
    "grouped.weight": "lr",
    "head.weight": "lr",
}


class Net(nn.Module):
    """Layers of all kinds, and tensors that stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(12, 12, 5, padding=4, dilation=2)
        self.grouped = nn.Conv2d(12, 8, 3, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, inputs: Any) -> Any:
        hidden = torch.relu(self.norm(self.stem(inputs)))
        hidden = hidden + self.second(torch.relu(self.first(hidden)))
        hidden = self.grouped(torch.relu(self.wide(torch.relu(self.down(hidden)))))
        return self.head(hidden.mean((2, 3)))


def factorizations() -> dict[str, FactoredWeight]:
    """Random factors of the layers of Net; first and second share one."""
    rng = np.random.default_rng(1)
    net, found, shared = Net(), {}, None
    for name, form in FACTORED.items():
        shape = tuple(net.get_parameter(name).shape)
        kind = FORMS[form]
        ranks = [min(4, most) for most in kind.max_ranks(shape)]
        factors = [rng.normal(0, 0.4, s).astype("f4") for s in kind.factor_shapes(shape, ranks)]
        if form == "joint_right":
            shared = factors[1] = factors[1] if shared is None else shared
        found[name] = kind(shape, tuple(factors))
    return found


def model() -> tuple[dict[str, np.ndarray], dict[str, FactoredWeight]]:
    """The state of a Net whose weights are products of factors, and these."""
    torch.manual_seed(0)
    net, weights = Net(), factorizations()
    net.norm.running_var.uniform_(0.5, 2)
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    return state | {name: weight.to_dense() for name, weight in weights.items()}, weights


@cache
def net_stream() -> bytes:
    """A stream of `model`, whose weights travel as their factors."""
    state, weights = model()
    return nnr_codec.encode(state, options=FINE, factorizations=weights).data or b""


def outputs(net: nn.Module) -> Any:
    torch.manual_seed(2)
    with torch.no_grad():
        return net.eval()(torch.randn(2, 3, 14, 15))


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def saved(suffix: str) -> Callable[[Path, bytes], Path]:
    def save(folder: Path, stream: bytes) -> Path:
        (folder / "m.nnr").write_bytes(stream)
        path = folder / f"m{suffix}"
        arguments = [str(folder / "m.nnr"), "-o", str(path), "-q", "--layers", "factorized"]
        assert decode_command.main(arguments) == 0
        return path

    return save


def changed(name: str, layer: nn.Module) -> nn.Module:
    net = Net()
    setattr(net, name, layer)
    return net


def low_rank_weight(outputs: int, inputs: int) -> FactoredWeight:
    rng = np.random.default_rng(0)
    factors = (rng.normal(0, 1, shape).astype("f4") for shape in ((outputs, 2), (2, inputs)))
    return FORMS["lr"]((outputs, inputs), tuple(factors))
