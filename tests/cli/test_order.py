"""nnr-encode --order: the order of tensors in the stream, and what execution needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import Run, random_weights, save, small_model

import nnr_codec

MODULES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Linear(40, 16), nn.Linear(24, 40)

    def forward(self, inputs):
        return self.second(self.first(inputs))

def module():
    return Net()

def with_inputs():
    return Net(), torch.zeros(1, 24)

def batches():
    return Net(), iter([torch.randn(8, 24) for _ in range(4)])

def failing():
    return Net(), torch.zeros(1, 7)
"""
FIRST, SECOND = {"first.weight", "first.bias"}, {"second.weight", "second.bias"}


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    pytest.importorskip("torch", reason="needs the extra torch")
    path = tmp_path / "networks.py"
    path.write_text(MODULES)
    return path


@pytest.mark.parametrize(
    ("order", "expected"),
    [("file", ["w.big", "w.small", "a"]), ("size", ["a", "w.small", "w.big"]), ("name", "sorted")],
)
def test_by_size_and_name(run: Run, tmp_path: Path, order: str, expected: list[str]) -> None:
    shapes = {"w.big": (30, 20), "w.small": (20, 4), "a": (8,)}
    model = save(tmp_path / "m.npz", {n: random_weights(*shape) for n, shape in shapes.items()})
    path = tmp_path / "ordered.nnr"
    assert run("nnr-encode", model, "-o", path, "-q", "--order", order, "--verify").code == 0
    names = sorted(shapes) if expected == "sorted" else expected
    assert list(nnr_codec.load_file(path)) == names


@pytest.mark.parametrize("option", ["--module=with_inputs", "--calibrate=batches"])
def test_by_execution(run: Run, modules: Path, tmp_path: Path, option: str) -> None:
    flag, _, function = option.partition("=")
    path = tmp_path / "ordered.nnr"
    asked = ("--order", "execution", flag, f"{modules}:{function}", "-q")
    backwards = save(tmp_path / "backwards.npz", dict(reversed(small_model().items())))
    done = run("nnr-encode", backwards, "-o", path, *asked)
    assert done.code == 0, done.err
    names = list(nnr_codec.load_file(path))
    assert (set(names[:2]), set(names[2:])) == (FIRST, SECOND)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--order: execution is traced: give --calibrate, or --module"),
        (["--module", "{}:module"], "--order: execution is traced"),
        (["--module", "{}:failing"], "networks.py:failing: RuntimeError"),
    ],
)
def test_what_execution_needs(
    run: Run, model: Path, modules: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    named = [argument.format(modules) for argument in arguments]
    path = tmp_path / "ordered.nnr"
    done = run("nnr-encode", model, "-o", path, "--order", "execution", *named)
    assert done.code == 2
    assert message in done.err
    assert not path.exists()
