"""The benchmark of factorized modules, a few rounds of it, and by a clock of our own."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conformance import latency  # noqa: E402
from conformance.subjects import source_of  # noqa: E402
from nnr_codec.decompose import Decomposition, timing  # noqa: E402
from nnr_codec.factorization.forms import LowRank  # noqa: E402

nn = torch.nn
DIGITS = source_of("digits_networks.py:cnn")


def _run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Run the command and return what it prints."""
    argv = ["latency", "--subjects", DIGITS, "--rounds", "1", "--seconds", "0", *more]
    monkeypatch.setattr("sys.argv", argv)
    threads = torch.get_num_threads()
    try:
        latency.main()
    finally:
        torch.set_num_threads(threads)
    return capsys.readouterr().out


def test_figures_of_a_digits_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--methods", "none", "lr", "tucker2", "auto-macs", "--ratios", "2", "900"]
    options += ["--energies", "0.6", "--samples", "1", "3", "--json"]
    printed = _run(monkeypatch, capsys, *options)
    figures = json.loads(printed)
    settings = [(row["method"], row["amount"], row["samples"]) for row in figures]
    assert settings == [
        (method, amount, count)
        for method, amount in [
            ("none", None), ("lr", 2.0), ("lr", 900.0), ("tucker2", 2.0), ("tucker2", 900.0),
            ("auto-macs", 0.6),
        ]
        for count in (1, 3)
    ]  # fmt: skip
    for row in figures:
        if row["amount"] == 900:
            assert row["refused"].startswith("compression_ratio: ")
            continue
        (dense, less), (parameters, fewer) = row["macs"], row["parameters"]
        assert dense == row["samples"] * figures[0]["macs"][0]
        assert len(row["layers"]) == sum(row["forms"].values())
        assert min([*row["seconds"], *row["quotients"], *row["layers"].values()]) > 0
        if row["method"] == "none":
            assert (less, fewer, row["layers"]) == (dense, parameters, {})
        else:
            assert less < dense
            assert fewer < parameters
        if row["amount"] == 2:
            assert parameters / fewer == pytest.approx(2, rel=0.05)


def test_table_of_a_digits_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = _run(monkeypatch, capsys, "--methods", "lr", "--ratios", "2", "--samples", "2")
    head, line, gap, summary = printed.splitlines()
    assert head.split()[:4] == ["network", "samples", "method", "at"]
    assert line.split()[:5] == ["digits_cnn", "2", "lr", "2x", "lr"]
    replaced, faster = line.split()[-3:-1]
    assert (gap, summary) == ("", f"lr: {faster} of {replaced} layers are faster")


def test_rows() -> None:
    figures = {
        "network": "n", "samples": 32, "method": "auto-latency", "amount": 0.95,
        "forms": {"lr": 2, "cp": 1}, "parameters": [300, 100], "macs": [4_000_000, 1_000_000],
        "seconds": [0.003, 0.002], "quotients": [1.25, 1.5, 1.75],
        "layers": {"a": 1.2, "b": 1.0, "c": 0.8},
    }  # fmt: skip
    row = dict(zip(range(len(latency.COLUMNS)), latency.row_of(figures), strict=True))
    assert list(row.values()) == [
        "n", "32", "auto-latency", "0.95", "lr 2, cp 1", "3.00", "4.0", "1.0", "4.00",
        "3.00", "2.00", "1.50", "1.25-1.75", "3", "1", "0.80",
    ]  # fmt: skip
    nothing = {**figures, "method": "none", "amount": None, "forms": {}, "layers": {}}
    cells = latency.row_of(nothing)
    assert (cells[3:5], cells[-3:]) == (("", ""), ("0", "0", ""))
    refused = {"network": "n", "samples": 1, "method": "ht2", "amount": 5.0, "refused": "why"}
    cells = latency.row_of(refused)
    assert cells[:5] == ("n", "1", "ht2", "5x", "refused")
    assert len(cells) == len(latency.COLUMNS)


def test_summary_is_over_all_rows() -> None:
    rows = [
        {"method": "none", "layers": {}},
        {"method": "lr", "layers": {"a": 1.1, "b": 1.0}},
        {"method": "cp", "layers": {"a": 0.5}},
        {"method": "lr", "layers": {"a": 1.2, "c": 2.0}},
        {"method": "lr", "refused": "why"},
    ]
    assert latency.summary(rows).splitlines() == [
        "lr: 3 of 4 layers are faster",
        "cp: 0 of 1 layers are faster",
    ]


def test_forms_of_kernels_need_kernels() -> None:
    everything = latency.cases(latency.METHODS, [2, 3], [0.9], has_kernels=True)
    assert len(everything) == 1 + 2 * 5 + 2
    linear = latency.cases(latency.METHODS, [2, 3], [0.9], has_kernels=False)
    assert {case.method for case in linear} == {"none", "lr", "joint", "auto-macs", "auto-latency"}
    chosen = latency.Case("auto-latency", 0.9).options.decomposition
    assert (chosen.method, chosen.objective, chosen.energy) == ("auto", "latency", 0.9)
    assert latency.Case("cp", 3.0).options.decomposition.compression_ratio == 3


def test_samples_of_several_batches() -> None:
    parts = [((torch.ones(2, 3), torch.zeros(2)), None), ((torch.ones(3, 3), torch.ones(3)), None)]
    subject: Any = SimpleNamespace(name="pairs", sampled=lambda limit: subject)
    subject.batches = lambda: parts
    first, second = latency.samples(subject, 5)
    assert first.shape == (5, 3)
    assert second.tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(SystemExit, match="pairs: has 5 samples, not 6"):
        latency.samples(subject, 6)


def test_latency_is_minimized_for_each_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def decompose(*_: Any, inputs: Any, **__: Any) -> Decomposition:
        asked.append(len(inputs[0]))
        return Decomposition()

    monkeypatch.setattr(latency, "decompose_model", decompose)
    network = latency.Network("n", nn.Linear(4, 4), {})
    batches = {count: torch.ones(count, 4) for count in (1, 8)}
    rounds = latency.Rounds(1, 0.0)
    for method, expected in (("auto-latency", [1, 8]), ("auto-macs", [1]), ("lr", [1])):
        asked.clear()
        amount = 2.0 if method == "lr" else 0.9
        rows = list(latency.measure(network, batches, latency.Case(method, amount), rounds))
        assert (asked, [row["samples"] for row in rows]) == (expected, [1, 8])


def test_quotients_are_dense_over_factorized(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that counts multiplications: of a layer of 64 x 64 in all, and at rank 8."""
    elapsed = [0.0]

    def tick(layer: Any, args: Any, output: Any) -> None:
        if isinstance(layer, nn.Linear):
            assert args[0].shape[1] == layer.in_features
            elapsed[0] += layer.weight.numel() * len(args[0])

    def clock() -> float:
        return elapsed[0]

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock, process_time=clock))
    module = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 64))
    factors = (np.ones((64, 8), np.float32), np.ones((8, 64), np.float32))
    weights = {"2.weight": LowRank((64, 64), factors)}
    handle = nn.modules.module.register_module_forward_hook(tick)
    try:
        figures = latency.compare(module, weights, torch.ones(5, 16), latency.Rounds(3, 0.0))
    finally:
        handle.remove()
    assert figures["layers"] == {"2.weight": 4.0}
    assert figures["macs"] == [5 * 9216, 5 * 6144]
    assert figures["seconds"] == figures["macs"]
    assert figures["quotients"] == [1.5, 1.5, 1.5]
