"""The experiment with fine-tuning, a few steps of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from conformance import fine_tuning  # noqa: E402
from conformance.studies.training_tasks import make_task  # noqa: E402

OUT_OF_REACH = 1000


@pytest.fixture(autouse=True)
def _threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _measure(monkeypatch: pytest.MonkeyPatch, output: Path, *more: str) -> list[dict[str, Any]]:
    """Run the command and return the lines of its output."""
    options = ["--subjects", "digits_residual", "--seeds", "0", "--steps", "12"]
    ratios = ["--ratios", "3", str(OUT_OF_REACH), "--learning-rate", "0.001"]
    monkeypatch.setattr("sys.argv", ["fine_tuning", "-o", str(output), *options, *ratios, *more])
    fine_tuning.main()
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_training_helps_and_runs_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs.jsonl"
    first = _measure(monkeypatch, output, "--schemes", "LR")
    lines = _measure(monkeypatch, output)
    assert lines[: len(first)] == first
    assert len(first) == 4
    assert len(lines) == 8
    reached = [line for line in lines if line["ratio"] == 3]
    for line in reached:
        assert 3 <= line["of"] / line["parameters"] < 3.2
        assert line["top1_uncompressed"] > 99
    decomposed, estimated, tuned = (
        sum(line[f"kl_{state}"] for line in reached) for state in fine_tuning.STATES
    )
    assert tuned < estimated < decomposed
    again = _measure(monkeypatch, tmp_path / "again.jsonl", "--schemes", "LR")
    assert _results(again) == _results(first)
    capsys.readouterr()
    _measure(monkeypatch, output, "--table")
    _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 8
    assert sum("out of reach" in row for row in rows) == 4


def _results(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: line[name] for name in line if name != "seconds"} for line in lines]


def test_a_ratio_out_of_reach_leaves_a_line_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, line = _measure(monkeypatch, tmp_path / "runs.jsonl", "--schemes", "LR")
    assert line["ratio"] == OUT_OF_REACH
    assert line["parameters"] is None
    assert line["top1_tuned"] is None
    assert "compression_ratio" in line["failure"]


def test_training_that_diverges_leaves_the_figures_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs.jsonl"
    line, *_ = _measure(monkeypatch, output, "--schemes", "LR", "--learning-rate", "1e30")
    assert line["top1_tuned"] is None
    assert line["top1_batch_norm"] > 10
    assert line["failure"].startswith("'loss': is ")
    capsys.readouterr()
    _measure(monkeypatch, output, "--table")
    assert line["failure"] in capsys.readouterr().out


@pytest.mark.parametrize("rule", fine_tuning.RULES)
def test_schemes_differ_in_the_kernels_of_several_taps(rule: str) -> None:
    bench = fine_tuning.Bench(make_task("digits_residual", None, 0, None))
    low_rank, selective = (
        bench.decomposed(fine_tuning.Point(scheme, rule, 3.0)).factorizations
        for scheme in fine_tuning.SCHEMES
    )
    assert {weight.form for weight in low_rank.values()} == {"lr"}
    for weight in selective.values():
        assert weight.form == ("cp" if weight.shape[2:] == (3, 3) else "lr")
    for factored in (low_rank, selective):
        assert "conv1.weight" not in factored
        assert ("fc.weight" in factored) == (rule == fine_tuning.WATER_FILLING)
        assert "block2.conv2.weight" in factored


def test_validation_looks_at_training_images_alone() -> None:
    task = make_task("digits_cnn", None, 0, None)
    validation = task.for_validation()
    held_out = validation.held_out
    assert held_out is not None
    assert len(held_out[0]) == 100
    assert len(validation.train[0]) == 400
    assert torch.equal(validation.test[0], held_out[0])
    trained, judged, both = map(_distinct, (validation.train[0], held_out[0], task.train[0]))
    assert trained | judged == both
    assert not trained & judged


def _distinct(images: Any) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}
