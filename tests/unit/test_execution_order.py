"""The order in which modules use their tensors, traced by calling them once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec import EncodeOptions  # noqa: E402
from nnr_codec.layers.execution import execution_order, traced_order  # noqa: E402


class Net(nn.Module):
    """Layers in another order than that of execution, of which one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(4, 4)
        self.functional = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.twice = nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("scratch", torch.ones(4), persistent=False)

    def forward(self, inputs: Any) -> Any:
        _ = self.unused.weight.shape, self.unused.weight.device  # tells nothing
        hidden = self.twice(self.norm(self.twice(inputs)))
        hidden = functional.linear(hidden, self.functional.weight, bias=self.functional.bias)
        return self.head(hidden * self.scratch + self.position) + self.scale.sum()


USED = [
    *("twice.weight", "twice.bias"),
    *(f"norm.{kind}" for kind in ("num_batches_tracked", "running_mean", "running_var")),
    *("norm.weight", "norm.bias", "functional.weight", "functional.bias", "position"),
    *("head.weight", "head.bias", "scale"),
]


def test_order_of_first_use() -> None:
    net = Net()
    found = execution_order(net, torch.zeros(2, 4))
    norms = {name for name in USED if name.startswith("norm")}
    assert [n for n in found if n not in norms] == [n for n in USED if n not in norms]
    assert {n for n in found if n in norms} == norms
    assert found.index("twice.bias") < min(map(found.index, norms))
    assert max(map(found.index, norms)) < found.index("functional.weight")


def test_the_module_stays_as_it_was() -> None:
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    execution_order(net, torch.randn(2, 4))
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(part._forward_pre_hooks for part in net.modules())


def test_inputs_of_all_kinds() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, a: Any, b: Any) -> Any:
            return self.right(b) + self.left(a)

    ones = torch.ones(1, 2)
    expected = ["right.weight", "right.bias", "left.weight", "left.bias"]
    assert execution_order(Sum(), (ones, ones)) == expected
    assert execution_order(Sum(), {"b": ones, "a": ones}) == expected


def test_attention_recurrence_and_tied_layers() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 12, bias=False)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.recurrent = nn.LSTM(8, 8, batch_first=True)
            self.embedding = nn.Embedding(12, 8)
            self.head.weight = self.embedding.weight

        def forward(self, words: Any) -> Any:
            hidden = self.recurrent(self.embedding(words))[0]
            return self.head(self.attention(hidden, hidden, hidden)[0])

    found = execution_order(Mixed(), torch.zeros(1, 3, dtype=torch.long))
    assert set(found[:2]) == {"head.weight", "embedding.weight"}
    kinds = [name.partition(".")[0] for name in found[2:]]
    assert kinds == ["recurrent"] * 4 + ["attention"] * 4
    assert "attention.out_proj.weight" in found  # which runs without a call of its module


def test_batches_are_not_lost() -> None:
    module = nn.Linear(2, 2)

    def numbers() -> Iterator[Any]:
        yield from (torch.full((1, 2), float(number)) for number in range(3))

    names, batches = traced_order(module, numbers())
    assert names == ["weight", "bias"]
    assert [float(batch[0, 0]) for batch in batches] == [0, 1, 2]
    kept = [(torch.zeros(1, 2), torch.zeros(1))]
    assert traced_order(module, kept) == (["weight", "bias"], kept)
    assert traced_order(module, []) == ([], ())


def test_encoding_of_a_module_in_its_order() -> None:
    net = Net().eval()
    batches = [torch.randn(8, 4) for _ in range(4)]
    options = EncodeOptions(order="execution", group=False, fold_norms=False)
    data = nnr_codec.encode(net, options=options, calibration=iter(batches)).data or b""
    found = list(nnr_codec.decode(data))
    assert found[:2] == ["twice.weight", "twice.bias"]
    assert found[-2:] == ["unused.weight", "unused.bias"]
    assert sorted(found) == sorted(net.state_dict())
    with pytest.raises(nnr_codec.InvalidOptions, match="order: 'execution' needs a module"):
        nnr_codec.encode(net, options=options)
