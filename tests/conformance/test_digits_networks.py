"""The digits networks as subjects, through the users' interface."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from subject_support import MODELS, tensors_of

from conformance.subjects import source_of
from nnr_codec.experiments.evaluation import evaluate
from nnr_codec.experiments.measures.complexity import subject_complexity
from nnr_codec.experiments.subject import Subject
from nnr_codec.experiments.subject_source import find_subject

RIGHT = {"cnn": 597, "residual": 597, "separable": 592}  # of 599
COSTS = {
    "cnn": (63_418, 1_864_512),
    "residual": (41_338, 1_067_776),
    "separable": (27_994, 352_640),
}
MOST_BYTES = 300_000


def _subject(name: str) -> Subject:
    return find_subject(source_of(f"digits_networks.py:{name}"))


@pytest.mark.parametrize("name", RIGHT)
def test_answers(name: str) -> None:
    subject = _subject(name)
    found = evaluate(subject, tensors_of(subject))
    assert len(found.scores["top1"]) == 599
    # Logits are not the same on every processor; an image between two classes may change sides.
    assert abs(int(found.scores["top1"].sum()) - RIGHT[name]) <= 1
    assert found.scores["top1"].mean() > 0.985
    assert subject.checkpoint.stat().st_size < MOST_BYTES


@pytest.mark.parametrize("name", COSTS)
def test_costs(name: str) -> None:
    found = subject_complexity(_subject(name))
    assert (found.parameters, found.macs) == COSTS[name]
    assert found.unknown == found.idle == ()


def test_the_evaluator_without_torch_says_the_same() -> None:
    subject = _subject("cnn")
    tensors = tensors_of(subject)
    outputs = evaluate(subject, tensors).outputs
    spec = importlib.util.spec_from_file_location("digits", MODELS / "digits.py")
    digits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digits)
    images, _ = digits.load_test_set()
    np.testing.assert_allclose(outputs, digits.logits(tensors, images), atol=1e-3)


def test_calibration_is_apart_from_the_test() -> None:
    subject = _subject("cnn")
    calibrating = np.concatenate([inputs.numpy() for inputs, _ in subject.calibration()])
    measured = np.concatenate([inputs.numpy() for inputs, _ in subject.batches()])
    assert calibrating.shape == (500, 1, 8, 8)
    assert not {image.tobytes() for image in calibrating} & {image.tobytes() for image in measured}


def test_together_small() -> None:
    assert sum(_subject(name).checkpoint.stat().st_size for name in RIGHT) < 600_000
