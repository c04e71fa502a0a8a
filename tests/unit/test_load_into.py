"""Loading streams and files into a module, dense or as factors; and modules that disagree."""

from __future__ import annotations

import copy
import doctest
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec.checkpoints import open_checkpoint, save_checkpoint  # noqa: E402
from nnr_codec.cli import decode as decode_command  # noqa: E402
from nnr_codec.errors import InvalidModel, InvalidOptions  # noqa: E402
from nnr_codec.factorization.forms import FORMS, FactoredWeight  # noqa: E402
from nnr_codec.layers import (  # noqa: E402
    FactorizedLayer,
    dense_state,
    factored_weights,
    factorize,
    factorized,
    load_into,
    loading,
    replacing,
)

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


@pytest.fixture(scope="module")
def stream() -> bytes:
    state, weights = model()
    return nnr_codec.encode(state, options=FINE, factorizations=weights).data or b""


def outputs(net: nn.Module) -> Any:
    torch.manual_seed(2)
    with torch.no_grad():
        return net.eval()(torch.randn(2, 3, 14, 15))


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def expected(stream: bytes) -> Any:
    net = Net()
    decoded = nnr_codec.decode(stream)
    net.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in decoded.items()})
    return outputs(net)


def saved(suffix: str) -> Callable[[Path, bytes], Path]:
    def save(folder: Path, stream: bytes) -> Path:
        (folder / "m.nnr").write_bytes(stream)
        path = folder / f"m{suffix}"
        arguments = [str(folder / "m.nnr"), "-o", str(path), "-q", "--layers", "factorized"]
        assert decode_command.main(arguments) == 0
        return path

    return save


SOURCES: dict[str, Callable[[Path, bytes], Any]] = {
    "bytes": lambda folder, stream: stream,
    "stream": lambda folder, stream: (folder / "m.nnr").write_bytes(stream) and folder / "m.nnr",
    "safetensors": saved(".safetensors"),
    "npz": saved(".npz"),
    "pt": saved(".pt"),
}


@pytest.mark.parametrize("layers", ["factorized", "dense"])
@pytest.mark.parametrize("kind", SOURCES)
def test_the_outputs_are_those_of_the_dense_model(
    kind: str, layers: Any, stream: bytes, expected: Any, tmp_path: Path
) -> None:
    net = Net()
    assert load_into(net, SOURCES[kind](tmp_path, stream), layers) is net
    replaced = [name for name, layer in net.named_modules() if isinstance(layer, FactorizedLayer)]
    names = [name.removesuffix(".weight") for name in FACTORED]
    assert replaced == (names if layers == "factorized" else [])
    assert_close(outputs(net), expected)
    if layers == "factorized":
        assert net.first.horizontal.weight is net.second.horizontal.weight


def test_a_dense_file(expected: Any, stream: bytes, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.safetensors", nnr_codec.decode(stream))
    net = load_into(Net(), tmp_path / "m.safetensors")
    assert_close(outputs(net), expected)
    assert not any(isinstance(layer, FactorizedLayer) for layer in net.modules())


def test_state_dict_round_trip(stream: bytes, expected: Any) -> None:
    net, other = load_into(Net(), stream), load_into(Net(), stream)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(net.state_dict())
    assert_close(outputs(other), expected)


def test_a_factorized_module_is_encoded_again(stream: bytes, expected: Any) -> None:
    net = load_into(Net(), stream)
    data = nnr_codec.encode(
        dense_state(net), options=FINE, factorizations=factored_weights(net)
    ).data
    assert list(nnr_codec.decode(data)) == list(nnr_codec.decode(stream))
    assert_close(outputs(load_into(Net(), data or b"")), expected)


def test_factors_without_a_stream(expected: Any, stream: bytes) -> None:
    """What `factorize` makes of a dense module is what loading the factors makes."""
    decoded = nnr_codec.decode(stream)
    net = Net()
    net.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in decoded.items()})
    weights = factored_weights(load_into(Net(), stream))
    assert factorize(net, weights) is net
    assert net.first.horizontal.weight is net.second.horizontal.weight
    assert_close(outputs(net), expected)


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


def test_onnx_export(stream: bytes, expected: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    net = load_into(Net(), stream).eval()
    torch.manual_seed(2)
    inputs = torch.randn(2, 3, 14, 15)
    torch.onnx.export(net, (inputs,), str(tmp_path / "m.onnx"), dynamo=False)
    exported = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(exported)
    (name,) = [value.name for value in exported.graph.input]
    (found,) = ReferenceEvaluator(exported).run(None, {name: inputs.numpy()})
    assert_close(torch.from_numpy(found), expected)
    elements = sum(int(np.prod(value.dims)) for value in exported.graph.initializer)
    assert elements < 0.8 * sum(v.size for v in nnr_codec.decode(stream).values())


def without(name: str) -> nn.Module:
    net = Net()
    setattr(net, name, None)
    return net


def changed(name: str, layer: nn.Module) -> nn.Module:
    net = Net()
    setattr(net, name, layer)
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


def test_not_strict(stream: bytes) -> None:
    net = changed("more", nn.Linear(2, 2))
    net.head = None
    load_into(net, stream, strict=False)
    assert isinstance(net.stem, FactorizedLayer)
    assert isinstance(net.more, nn.Linear)


def test_the_module_itself_cannot_be_replaced() -> None:
    weight = FORMS["lr"]((4, 3), (np.ones((4, 1), np.float32), np.ones((1, 3), np.float32)))
    data = nnr_codec.encode(
        {"weight": weight.to_dense(), "bias": np.zeros(4, np.float32)},
        factorizations={"weight": weight},
    ).data
    with pytest.raises(InvalidModel, match="itself"):
        load_into(nn.Linear(3, 4), data or b"")
    assert load_into(nn.Linear(3, 4), data or b"", "dense").weight.std() < 0.01


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
    data = nnr_codec.encode(dense, factorizations=weights, carriage=carriage).data
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


def low_rank_weight(outputs: int, inputs: int) -> FactoredWeight:
    rng = np.random.default_rng(0)
    factors = (rng.normal(0, 1, shape).astype("f4") for shape in ((outputs, 2), (2, inputs)))
    return FORMS["lr"]((outputs, inputs), tuple(factors))


def test_counters_of_batch_norm_may_be_missing() -> None:
    """Some checkpoints leave them out; torch loads such, too."""
    net, source = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(3))
    source[0].running_mean.fill_(2)
    state = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    counter = state.pop("0.num_batches_tracked")
    load_into(net, nnr_codec.encode(state).data or b"")
    assert net[0].running_mean.tolist() == [2, 2, 2]
    state["0.num_batches_tracked"] = counter
    del state["0.running_mean"]
    with pytest.raises(InvalidModel, match=r"running_mean.*not in"):
        load_into(net, nnr_codec.encode(state).data or b"")


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


@pytest.mark.parametrize("module", [factorized, loading, replacing])
def test_examples(module: Any) -> None:
    assert doctest.testmod(module).attempted > 3
    assert doctest.testmod(module).failed == 0
