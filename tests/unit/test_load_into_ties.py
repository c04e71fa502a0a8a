"""Loading into modules of which layers are one, or share their weight."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from load_into_support import FINE, Net, low_rank_weight, net_stream  # noqa: E402
from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec.errors import InvalidModel  # noqa: E402
from nnr_codec.factorization.forms import FORMS  # noqa: E402
from nnr_codec.layers import (  # noqa: E402
    FactorizedLayer,
    dense_state,
    factored_weights,
    factorize,
    load_into,
)
from nnr_codec.options import DecompositionOptions  # noqa: E402


@pytest.fixture(scope="module")
def stream() -> bytes:
    return net_stream()


def test_layers_that_are_one_stay_one(stream: bytes) -> None:
    net = Net()
    net.twin = net.first
    load_into(net, stream)
    assert net.twin is net.first
    assert isinstance(net.twin, FactorizedLayer)


class OneLayerTwice(nn.Module):
    """One layer under two names, of which the state dict has both."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 4, bias=False)
        self.two = self.one


@pytest.mark.parametrize("carriage", ["dc", "factors"])
def test_one_layer_has_not_two_factored_weights(carriage: Any) -> None:
    """Which of them it would run on is not said."""
    rng = np.random.default_rng(0)
    weights = {
        f"{name}.weight": FORMS["lr"](
            (4, 6), (rng.normal(size=(4, 2)).astype("f4"), rng.normal(size=(2, 6)).astype("f4"))
        )
        for name in ("one", "two")
    }
    dense = {name: weight.to_dense() for name, weight in weights.items()}
    options = nnr_codec.EncodeOptions(decomposition=DecompositionOptions(carriage=carriage))
    data = nnr_codec.encode(dense, options=options, factorizations=weights).data
    net = OneLayerTwice()
    before = copy.deepcopy(net.state_dict())
    for replace in (lambda: load_into(net, data), lambda: factorize(net, weights)):
        with pytest.raises(InvalidModel, match=r"'two\.weight'.*one layer with 'one\.weight'"):
            replace()
    assert net.one is net.two
    assert all(torch.equal(values, before[name]) for name, values in net.state_dict().items())


def test_a_tie_to_a_factored_weight() -> None:
    from nnr_codec.model import Model, Parameter

    rng = np.random.default_rng(0)
    weight = FORMS["lr"]((9, 4), tuple(rng.normal(0, 1, s).astype("f4") for s in ((9, 2), (2, 4))))
    first = Parameter.from_array("table.weight", weight.to_dense())
    tied = Parameter("head.weight", (9, 4), first.dtype, first.load, tied_to="table.weight")
    data = nnr_codec.encode(
        Model([first, tied]), options=FINE, factorizations={"table.weight": weight}
    ).data
    net = nn.ModuleDict({"table": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    net.head.weight = net.table.weight
    load_into(net, data or b"")
    torch.testing.assert_close(net.table.weight, net.head.weight, rtol=1e-4, atol=1e-5)
    assert isinstance(net.table, FactorizedLayer)


@pytest.mark.parametrize("both", [False, True])
def test_layers_that_are_tied_in_the_module(both: bool) -> None:
    """A stream may have a tied weight once, or twice without knowing of the tie."""
    weight = low_rank_weight(9, 4)
    weights = {"table.weight": weight, "head.weight": low_rank_weight(9, 4)}
    weights = weights if both else {"table.weight": weight}
    net = nn.ModuleDict({"table": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    net.head.weight = net.table.weight
    state = {name: weight.to_dense() for name in weights}
    load_into(net, nnr_codec.encode(state, options=FINE, factorizations=weights).data or b"")
    assert isinstance(net.table, FactorizedLayer)
    assert isinstance(net.head, FactorizedLayer) is both
    expected = torch.from_numpy(weight.to_dense())
    for layer in (net.table, net.head):
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-3)


def test_one_layer_with_two_names_is_encoded_again() -> None:
    def twins() -> nn.Module:
        layer = nn.Linear(4, 9, bias=False)
        return nn.ModuleDict({"a": layer, "b": layer})

    weight = low_rank_weight(9, 4)
    net = factorize(twins(), {"a.weight": weight})
    assert list(factored_weights(net)) == ["a.weight"]
    data = nnr_codec.encode(
        dense_state(net), options=FINE, factorizations=factored_weights(net)
    ).data
    assert list(nnr_codec.decode(data)) == ["a.weight", "b.weight"]
    again = load_into(twins(), data or b"")
    assert again.a is again.b
    np.testing.assert_allclose(again.a.weight.detach(), weight.to_dense(), rtol=0, atol=1e-3)
