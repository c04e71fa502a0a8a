"""Modules, factors and maps that do not fit: refused by name, with nothing changed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from load_into_support import (  # noqa: E402
    Net,
    changed,
    factorizations,
    low_rank_weight,
    net_stream,
    saved,
)
from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec.checkpoints import open_checkpoint, save_checkpoint  # noqa: E402
from nnr_codec.errors import InvalidModel, InvalidOptions  # noqa: E402
from nnr_codec.factorization.forms import FORMS  # noqa: E402
from nnr_codec.layers import FactorizedLayer, factorize, load_into  # noqa: E402


@pytest.fixture(scope="module")
def stream() -> bytes:
    return net_stream()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no.weight", "no such"), ("norm.weight", "shape"), ("down.weight", "shape")],
)
def test_factors_that_do_not_fit_change_nothing(name: str, reason: str) -> None:
    net, weights = Net(), factorizations()
    wrong = weights["head.weight"]
    with pytest.raises(InvalidModel, match=reason) as caught:
        factorize(net, {**weights, name: wrong})
    assert caught.value.parameter == name
    assert not any(isinstance(layer, FactorizedLayer) for layer in net.modules())


def without(name: str) -> nn.Module:
    net = Net()
    setattr(net, name, None)
    return net


@pytest.mark.parametrize(
    ("net", "name", "reason"),
    [
        (changed("stem", nn.Conv2d(3, 8, 5, bias=False)), "stem.weight", r"\(8, 3, 3, 3\)"),
        (changed("norm", nn.BatchNorm2d(9)), "norm.weight", r"\(8,\), and \(9,\)"),
        (
            changed("grouped", nn.Conv2d(12, 8, 3)),
            "grouped.weight",
            r"\(8, 12, 3, 3\) in the module",
        ),
        (changed("wide", nn.ConvTranspose2d(12, 12, 5)), "wide.weight", "ConvTranspose2d"),
        (changed("head", nn.Linear(8, 5, bias=False)), "head.bias", "no such tensor"),
        (changed("more", nn.Linear(2, 2)), "more.weight", "not in"),
        (without("head"), "head.bias", "no such tensor"),
    ],
)
def test_modules_that_disagree_are_refused_unchanged(
    net: nn.Module, name: str, reason: str, stream: bytes
) -> None:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InvalidModel, match=reason) as caught:
        load_into(net, stream)
    assert caught.value.parameter == name
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_module_itself_cannot_be_replaced() -> None:
    weight = FORMS["lr"]((4, 3), (np.ones((4, 1), np.float32), np.ones((1, 3), np.float32)))
    data = nnr_codec.encode(
        {"weight": weight.to_dense(), "bias": np.zeros(4, np.float32)},
        factorizations={"weight": weight},
    ).data
    with pytest.raises(InvalidModel, match="itself"):
        load_into(nn.Linear(3, 4), data or b"")
    assert load_into(nn.Linear(3, 4), data or b"", "dense").weight.std() < 0.01


def test_lazy_layers_are_refused_by_name() -> None:
    weight = low_rank_weight(9, 4)
    state = {"0.weight": weight.to_dense(), "0.bias": np.zeros(9, np.float32)}
    factors = {"0.weight": weight}
    data = nnr_codec.encode(state, factorizations=factors).data or b""
    net = nn.Sequential(nn.LazyLinear(9))
    with pytest.raises(InvalidModel, match=r"'0.* no shape in the module yet"):
        load_into(net, data)
    with pytest.raises(InvalidModel, match=r"'0.weight': has no shape in the module yet"):
        factorize(net, factors)
    net(torch.zeros(1, 4))
    assert isinstance(load_into(net, data)[0], FactorizedLayer)


def test_modules_without_memory_are_refused() -> None:
    weight = low_rank_weight(9, 4)
    data = nnr_codec.encode({"0.weight": weight.to_dense()}, factorizations={"0.weight": weight})
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 9, bias=False))
    with pytest.raises(InvalidModel, match=r"'0\.weight': is on the device 'meta'"):
        load_into(net, data.data or b"")
    load_into(net.to_empty(device="cpu"), data.data or b"")
    np.testing.assert_allclose(net[0].weight.detach(), weight.to_dense(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("wrapped", [True, False])
def test_weights_that_are_computed_are_refused_by_name(wrapped: bool) -> None:
    """Weight norm, old and new: what travels is no layer's weight."""
    norm = nn.utils.parametrizations.weight_norm if wrapped else nn.utils.weight_norm
    net = nn.Sequential(norm(nn.Linear(4, 9)))
    weight = low_rank_weight(9, 4)
    name = "0.parametrizations.weight.original1" if wrapped else "0.weight_v"
    with pytest.raises(InvalidModel, match="no layer's weight") as caught:
        factorize(net, {name: weight})
    assert caught.value.parameter == name
    with pytest.raises(InvalidModel, match=r"'0.weight': .*no such tensor"):
        factorize(net, {"0.weight": weight})


def test_options_and_sources_that_do_not_exist(stream: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptions, match="layers"):
        load_into(Net(), stream, "sparse")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="missing"):
        load_into(Net(), tmp_path / "missing.nnr")
    with pytest.raises(nnr_codec.BitstreamError):
        load_into(Net(), stream[:-3])
    with pytest.raises(nnr_codec.LimitExceeded):
        load_into(Net(), stream, limits=nnr_codec.DecodeLimits(max_elements=100))


@pytest.mark.parametrize(
    "change",
    [
        {"form": "cp"},
        {"shape": [8, 3, 3, 4]},
        {"factors": ["head.weight_G", "head.weight_H", "missing"]},
        {"factors": ["head.bias", "head.weight_H"]},
        {"dtype": "int8"},
    ],
)
def test_damaged_maps_of_files(change: dict[str, Any], stream: bytes, tmp_path: Path) -> None:
    path = saved(".safetensors")(tmp_path, stream)
    with open_checkpoint(path) as found:
        arrays = dict(found.arrays())
        data = json.loads(found.metadata["nnr_model_map"])
    data["factorizations"]["stem.weight"].update(change)
    save_checkpoint(
        path,
        arrays,
        overwrite=True,
        metadata={"nnr_model_map": json.dumps(data, separators=(",", ":"))},
    )
    with pytest.raises(InvalidModel, match="model map"):
        load_into(Net(), path)
