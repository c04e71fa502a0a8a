"""Loading streams and files into a module, dense or as factors."""

from __future__ import annotations

import doctest
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from load_into_support import (  # noqa: E402
    FACTORED,
    FINE,
    Net,
    assert_close,
    changed,
    net_stream,
    outputs,
    saved,
)
from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec.checkpoints import save_checkpoint  # noqa: E402
from nnr_codec.errors import InvalidModel  # noqa: E402
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
from nnr_codec.model import Array, Parameter  # noqa: E402


@pytest.fixture(scope="module")
def stream() -> bytes:
    return net_stream()


@pytest.fixture(scope="module")
def expected(stream: bytes) -> Any:
    net = Net()
    decoded = nnr_codec.decode(stream)
    net.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in decoded.items()})
    return outputs(net)


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


def test_not_strict(stream: bytes) -> None:
    net = changed("more", nn.Linear(2, 2))
    net.head = None
    load_into(net, stream, strict=False)
    assert isinstance(net.stem, FactorizedLayer)
    assert isinstance(net.more, nn.Linear)


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


@pytest.mark.parametrize("module", [factorized, loading, replacing])
def test_examples(module: Any) -> None:
    assert doctest.testmod(module).attempted > 3
    assert doctest.testmod(module).failed == 0


def test_loading_keeps_no_factors_of_weights_that_are_formed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most three wait for the fourth, of CP; there are more than twenty tensors."""
    alive: list[weakref.ref[Any]] = []
    most, read = 0, Parameter.read

    def watched(parameter: Parameter) -> Array:
        nonlocal most
        most = max(most, sum(reference() is not None for reference in alive))
        values = read(parameter)
        alive.append(weakref.ref(values))
        return values

    path = saved(".safetensors")(tmp_path, net_stream())
    monkeypatch.setattr(Parameter, "read", watched)
    load_into(Net(), path, layers="dense")
    assert len(alive) > 20
    assert most == 3


def test_an_update_is_loaded_with_its_base() -> None:
    torch.manual_seed(0)
    old, new = nn.Linear(8, 4), nn.Linear(8, 4)
    base = nnr_codec.encode(old).data
    update = nnr_codec.encode(new, base=[base]).data
    load_into(old, update, base=[base])
    expected = nnr_codec.decode(update, base=[base])
    for name, tensor in old.state_dict().items():
        assert np.array_equal(tensor.numpy(), expected[name])
    with pytest.raises(nnr_codec.WrongBase):
        load_into(old, update)
