"""The example and the study of ways to train, a few steps of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conformance import decompose_and_train  # noqa: E402
from conformance.studies import training_methods  # noqa: E402
from conformance.studies.training_tasks import make_task  # noqa: E402

ROW = re.compile(r"^(.{22}) +(\d+) +(\d+) +([\d.]+) %$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    arguments = ["-o", str(tmp_path), "--ratio", "4", "--steps", "15"]
    monkeypatch.setattr("sys.argv", ["decompose_and_train", *arguments])
    decompose_and_train.main()
    rows = [
        (stage.strip(), int(parameters), int(size), float(top1))
        for stage, parameters, size, top1 in ROW.findall(capsys.readouterr().out)
    ]
    stages = ["dense", *["decomposed", "trained"] * 3, "to be sent", "decoded, on factors"]
    assert [row[0] for row in rows] == stages
    dense, *middle, sent, decoded = rows
    assert dense[3] > 99
    assert dense[1] / sent[1] >= 4
    assert sent[1:] == middle[-1][1:]
    assert decoded[1] == sent[1]
    assert abs(decoded[3] - sent[3]) < 0.5
    assert decoded[3] > 90
    assert sent[2] == (tmp_path / "digits.nnr").stat().st_size < dense[2] / 2.5
    exported = onnx.load(tmp_path / "digits.onnx")
    images, labels = make_task("digits_cnn", None, 0, None).test
    (name,) = [value.name for value in exported.graph.input]
    runner = ReferenceEvaluator(exported)
    found = [runner.run(None, {name: image[None].numpy()})[0].argmax() for image in images[:20]]
    assert np.mean(np.array(found) == labels[:20].numpy()) > 0.8
    elements = sum(int(np.prod(value.dims)) for value in exported.graph.initializer)
    assert elements < 2 * sent[1]


def test_the_study_runs_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs.jsonl"
    given = ["-o", str(output), "--seeds", "0", "--ratios", "6", "--steps", "12"]
    monkeypatch.setattr("sys.argv", ["training_methods", *given])
    training_methods.main()
    training_methods.main()
    lines = {line["method"]: line for line in map(json.loads, output.read_text().splitlines())}
    assert tuple(lines) == training_methods.METHODS
    assert len(output.read_text().splitlines()) == len(lines)
    assert lines["at once"]["parameters"] * 6 <= 63418
    for line in lines.values():
        assert 0.9 < line["parameters"] / lines["at once"]["parameters"] <= 1
        assert line["top1_tuned"] > 60
        assert 0 < line["kl_tuned"] < 2
    monkeypatch.setattr("sys.argv", ["training_methods", *given, "--table"])
    capsys.readouterr()
    training_methods.main()
    assert capsys.readouterr().out.count("digits_cnn") == len(lines)
