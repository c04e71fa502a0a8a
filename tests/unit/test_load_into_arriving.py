"""Modules that are loaded from files and pipes, tensor by tensor while these arrive."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")

from load_into_support import Net, net_stream  # noqa: E402
from streaming_support import NAMES, expected, stream, unit_ends  # noqa: E402
from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec.errors import InvalidModel, NnrWarning  # noqa: E402
from nnr_codec.factorization.forms import LowRank  # noqa: E402
from nnr_codec.layers import FactorizedLayer, load_into  # noqa: E402
from nnr_codec.options import DecompositionOptions  # noqa: E402


@contextmanager
def piped(data: bytes) -> Iterator[BinaryIO]:
    """Give a pipe that has some bytes, from a thread that writes them."""
    reads, writes = os.pipe()

    def write() -> None:
        with os.fdopen(writes, "wb") as sink:
            sink.write(data)

    with ThreadPoolExecutor(1) as pool, os.fdopen(reads, "rb") as source:
        pool.submit(write)
        yield source


class Layers(nn.Module):
    """The weights of `streaming_support.stream`."""

    def __init__(self, names: list[str] = NAMES) -> None:
        super().__init__()
        for name in names:
            layer = nn.Linear(48, 64, bias=False)
            nn.init.zeros_(layer.weight)
            self.add_module(name.partition(".")[0], layer)


def assert_same_state(found: nn.Module, other: nn.Module) -> None:
    state, reference = found.state_dict(), other.state_dict()
    assert list(state) == list(reference)
    assert all(torch.equal(state[name], reference[name]) for name in state)


@pytest.mark.parametrize("layers", ["factorized", "dense"])
def test_a_pipe_gives_what_bytes_give(layers: Any) -> None:
    with piped(net_stream()) as source:
        net = load_into(Net(), source, layers)
    assert_same_state(net, load_into(Net(), net_stream(), layers))
    assert isinstance(net.stem, FactorizedLayer) == (layers == "factorized")
    if layers == "factorized":
        assert net.first.horizontal.weight is net.second.horizontal.weight


def test_blocks_of_two_factors() -> None:
    """Of which the model map says nothing."""
    rng = np.random.default_rng(0)
    weight = LowRank((16, 32), (rng.normal(size=(16, 2)), rng.normal(size=(2, 32))))
    model = {"0.weight": weight.to_dense(), "0.bias": np.ones(16, np.float32)}
    options = nnr_codec.EncodeOptions(decomposition=DecompositionOptions(carriage="dc"))
    data = nnr_codec.encode(model, options=options, factorizations={"0.weight": weight}).data or b""
    with piped(data) as source:
        net = load_into(nn.Sequential(nn.Linear(32, 16)), source)
    assert isinstance(net[0], FactorizedLayer)
    assert_same_state(net, load_into(nn.Sequential(nn.Linear(32, 16)), data))


def test_files_are_read_from_where_they_stand() -> None:
    source = io.BytesIO(b"before" + stream())
    source.seek(6)
    module = load_into(Layers(), source)
    for name, values in expected().items():
        np.testing.assert_array_equal(module.get_parameter(name).detach(), values)
    assert not source.closed


def test_of_a_file_all_is_checked_first() -> None:
    module = Layers(NAMES[:3])
    with pytest.raises(InvalidModel, match=r"'3\.weight': is in 'a bitstream'"):
        load_into(module, io.BytesIO(stream()))
    assert not any(parameter.any() for parameter in module.parameters())


def test_of_a_pipe_each_tensor_is_checked_when_it_comes() -> None:
    module = Layers(NAMES[:3])
    with (
        piped(stream()) as source,
        pytest.raises(InvalidModel, match=r"'3\.weight': is in 'a bitstream'"),
    ):
        load_into(module, source)
    assert all(parameter.any() for parameter in module.parameters())
    module = Layers()
    module.get_submodule("1").weight = nn.Parameter(torch.zeros(3, 3))
    with (
        piped(stream()) as source,
        pytest.raises(InvalidModel, match=r"'1\.weight': has the shape"),
    ):
        load_into(module, source)
    assert module.get_parameter("0.weight").any()
    assert not module.get_parameter("2.weight").any()


def test_of_a_pipe_what_is_missing_is_known_in_the_end() -> None:
    module = Layers([*NAMES, "9.weight"])
    with (
        piped(stream()) as source,
        pytest.raises(InvalidModel, match=r"'9\.weight': is in the module, and not in"),
    ):
        load_into(module, source)
    assert module.get_parameter("4.weight").any()
    module = Layers([*NAMES[1:], "9.weight"])
    with piped(stream()) as source, pytest.warns(NnrWarning) as warnings:
        load_into(module, source, strict=False)
    assert [str(warning.message).split()[0] for warning in warnings] == ["'0.weight'", "'9.weight'"]
    assert {warning.filename for warning in warnings} == {__file__}


def test_tensors_are_in_the_module_before_the_next_ones_arrive() -> None:
    module, seen = Layers(), []

    class Slow(io.RawIOBase):
        """Notes at each unit's end which layers are loaded."""

        def __init__(self) -> None:
            self.position = 0

        def read(self, size: int = -1) -> bytes:
            if self.position in unit_ends():
                seen.append([name for name in NAMES if module.get_parameter(name).any()])
            start, self.position = self.position, self.position + min(size, 1)
            return stream()[start : self.position]

    load_into(module, Slow())  # type: ignore[arg-type]
    assert seen == [NAMES[:count] for count in range(1, len(NAMES) + 1)]


def test_damaged_payloads_leave_a_pipe_partly_loaded() -> None:
    module = Layers()
    with piped(stream()[: unit_ends()[1] + 5]) as source, pytest.raises(nnr_codec.BitstreamError):
        load_into(module, source)
    loaded = [name for name in NAMES if module.get_parameter(name).any()]
    assert loaded == NAMES[:2]


def test_types_are_those_of_the_module() -> None:
    values = {"weight": np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)}
    narrow = {n: torch.from_numpy(v).bfloat16() for n, v in values.items()}
    data = nnr_codec.encode(narrow, options=nnr_codec.EncodeOptions(lossless=True)).data or b""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        module = load_into(nn.Linear(8, 8, bias=False).to(dtype), data)
        assert module.weight.dtype == dtype
        assert torch.equal(module.weight.bfloat16(), narrow["weight"])
