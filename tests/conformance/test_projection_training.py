"""The experiment with training for low rank, a few steps of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from conformance import projection_training  # noqa: E402


def _measure(monkeypatch: pytest.MonkeyPatch, output: Path, *more: str) -> list[dict[str, Any]]:
    """Run the command and return the lines of its output."""
    options = ["--subjects", "digits_separable", "--ratios", "3", "--seeds", "0", "--steps", "6"]
    argv = ["projection_training", "-o", str(output), "--every", "4", *options, *more]
    monkeypatch.setattr("sys.argv", argv)
    threads = torch.get_num_threads()
    try:
        projection_training.main()
    finally:
        torch.set_num_threads(threads)
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_methods_end_with_equal_parameters_and_runs_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs.jsonl"
    first = _measure(monkeypatch, output, "--methods", "none", "projection")
    lines = _measure(monkeypatch, output)
    assert lines[:2] == first
    assert [line["method"] for line in lines] == ["none", "projection", "fine-tuning", "dense"]
    none, projection, tuned, dense = lines
    assert none["parameters"] == projection["parameters"] == tuned["parameters"]
    assert none["parameters"] < dense["parameters"] == dense["of"]
    assert dense["test"] > 90
    assert tuned["test"] > none["test"]
    again = _measure(monkeypatch, tmp_path / "again.jsonl")
    results = {line["method"]: line["test"] for line in again}
    assert results == {line["method"]: line["test"] for line in lines}
    capsys.readouterr()
    _measure(monkeypatch, output, "--table")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert all("digits_separable" in line for line in printed[1:])


def test_factors_are_what_is_trained() -> None:
    """Gradients reach every factor, and the product is the kernel."""
    from nnr_codec.training import LowRankProjection

    torch.manual_seed(1)
    layer = torch.nn.Conv2d(6, 8, 3)
    for ranks in (3, (4, 2)):
        factored = LowRankProjection(layer, {"weight": ranks}).project()["weight"]
        product = projection_training.Product(factored)
        factors = [
            factor.clone().requires_grad_() for factor in product.right_inverse(layer.weight)
        ]
        kernel = product(*factors)
        assert torch.allclose(kernel, layer.weight, atol=1e-6)
        kernel.square().sum().backward()
        assert all(factor.grad.abs().sum() > 0 for factor in factors)
