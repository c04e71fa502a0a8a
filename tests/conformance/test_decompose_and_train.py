"""The example, a few steps of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conformance import decompose_and_train  # noqa: E402
from conformance.studies.digits_task import make_task  # noqa: E402

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
    images, labels = make_task("digits_cnn").test
    (name,) = [value.name for value in exported.graph.input]
    runner = ReferenceEvaluator(exported)
    found = [runner.run(None, {name: image[None].numpy()})[0].argmax() for image in images[:20]]
    assert np.mean(np.array(found) == labels[:20].numpy()) > 0.8
    elements = sum(int(np.prod(value.dims)) for value in exported.graph.initializer)
    assert elements < 2 * sent[1]
