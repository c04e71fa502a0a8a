"""Metrics against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnr_codec.errors import InvalidModel
from nnr_codec.experiments.measures.metrics import (
    Classification,
    Reconstruction,
    Retrieval,
    classification,
    unlabelled_classification,
)

LOG3 = math.log(3)


def test_top_k() -> None:
    outputs = np.array([[6, 5, 4, 3, 2, 1, 0]] * 7, np.float32)
    found = classification.scores(outputs, np.arange(7))
    assert found["top1"].tolist() == [True] + [False] * 6
    assert found["top5"].tolist() == [True] * 5 + [False] * 2


def test_the_lower_of_equal_logits_comes_first() -> None:
    outputs = np.zeros((3, 3), np.float32)
    found = Classification(tops=(1, 2)).scores(outputs, np.array([0, 1, 2]))
    assert found["top1"].tolist() == [True, False, False]
    assert found["top2"].tolist() == [True, True, False]


def test_top_k_of_as_many_classes_says_nothing() -> None:
    assert list(classification.scores(np.zeros((1, 5)), np.array([0]))) == ["top1"]
    assert list(classification.scores(np.zeros((1, 6)), np.array([0]))) == ["top1", "top5"]
    assert list(classification.scores(np.zeros((1, 1)), np.array([0]))) == ["top1"]


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_are_classes(label: int) -> None:
    with pytest.raises(InvalidModel, match=f"targets.*{label} is none of 3 classes"):
        classification.scores(np.zeros((2, 3)), np.array([0, label]))


def test_divergence_is_kl_of_the_reference_in_nats() -> None:
    # Probabilities 1/2 1/2 of the reference; 1/4 3/4 of what is judged, whatever is added to all.
    reference = np.zeros((2, 2), np.float32)
    outputs = np.array([[0, LOG3], [100, 100 + LOG3]], np.float32)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    found = classification.divergence_from(outputs, reference)
    assert found == pytest.approx([expected] * 2, rel=1e-5)
    swapped = classification.divergence_from(reference, outputs)
    assert swapped[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-5)


def test_divergence_of_many_samples_and_of_tiny_differences() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(2500, 4)).astype(np.float32)
    found = classification.divergence_from(outputs, outputs)
    assert found.shape == (2500,)
    assert not found.any()
    nearly = classification.divergence_from(outputs + np.float32(1e-7), outputs)
    assert (nearly >= 0).all()
    assert nearly.max() < 1e-12


def test_classification_agrees_with_itself_and_by_class() -> None:
    outputs = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    reference = np.array([[9, 0, 0], [0, 0, 1], [0, 0, 1]], np.float32)
    assert classification.agreement(outputs, reference).tolist() == [True, False, True]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_wrong_and_infinitely_far(value: float) -> None:
    reference = np.array([[1, 0, 0], [1, 0, 0]], np.float32)
    outputs = reference.copy()
    outputs[1, 0] = value
    assert classification.scores(outputs, np.array([0, 0]))["top1"].tolist() == [True, False]
    assert classification.agreement(outputs, reference).tolist() == [True, False]
    assert classification.divergence_from(outputs, reference).tolist() == [0, np.inf]


def test_uncompressed_outputs_have_to_be_finite() -> None:
    outputs = np.zeros((3, 2), np.float32)
    reference = outputs.copy()
    reference[2, 1] = np.nan
    with pytest.raises(InvalidModel, match="sample 2 is not finite"):
        classification.divergence_from(outputs, reference)


def test_without_labels_agreement_is_primary() -> None:
    assert unlabelled_classification.primary == "agreement"
    assert unlabelled_classification.scores(np.zeros((1, 2)), None) == {}
    assert classification.primary == "top1"


def test_psnr_where_the_target_is_measured() -> None:
    metric = Reconstruction(peak=2.0, levels=20)
    target = np.array([[[1, 1], [1, np.nan]], [[0, 0], [np.nan, np.nan]]])
    outputs = np.array([[[1.3, 1], [1, 7]], [[-5, 0.2], [np.nan, 9]]], np.float32)
    # Errors: 0.3 of one among three values; 0.2 of one among two, as -5 is clipped to 0.
    expected = [10 * math.log10(4 / (0.09 / 3)), 10 * math.log10(4 / (0.04 / 2))]
    assert metric.scores(outputs, target)["psnr_db"] == pytest.approx(expected, rel=1e-6)
    assert metric.divergence_from(outputs, target) == pytest.approx([0.03, 0.02], rel=1e-6)


def test_images_agree_in_levels() -> None:
    metric = Reconstruction(peak=2.0, levels=20)
    reference = np.array([[[1, 1], [1, np.nan]]])
    outputs = np.array([[[1.04, 1.06], [0.96, np.nan]]], np.float32)
    assert metric.agreement(outputs, reference).tolist() == [pytest.approx(2 / 3)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_image_is_infinitely_far(value: float) -> None:
    target = np.zeros((1, 2, 2))
    outputs = np.zeros((1, 2, 2), np.float32)
    outputs[0, 1, 1] = value
    metric = Reconstruction()
    assert metric.scores(outputs, target)["psnr_db"].tolist() == [-np.inf]
    assert metric.divergence_from(outputs, target).tolist() == [np.inf]
    assert metric.agreement(np.full((1, 2, 2), np.nan), target).tolist() == [0]
    with pytest.raises(InvalidModel, match="sample 0"):
        metric.divergence_from(outputs, np.full((1, 2, 2), np.nan))


def _turned(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def test_retrieval_ranks_partners_both_ways() -> None:
    outputs = np.stack([_turned(0, 90, 180), _turned(10, 140, 230)], axis=1)
    found = Retrieval().scores(outputs, None)
    # First ones: 0 finds 10; 90 finds 140 (50 away, 10 is 80 away); 180 finds 140 (40; 230 is 50).
    # Second ones: 10 finds 0; 140 finds 180 (40; 90 is 50); 230 finds 180.
    assert found["top1"].tolist() == [1, 0.5, 0.5]
    assert found["mrr"].tolist() == [1, 0.75, 0.75]


def test_retrieval_divergence_and_agreement() -> None:
    reference = np.stack([_turned(0, 90, 180), _turned(10, 140, 230)], axis=1)
    outputs = np.stack([_turned(0, 90, 200), _turned(10, 140, 230)], axis=1)
    metric = Retrieval()
    turned = (1 - math.cos(math.radians(20))) / 2
    assert metric.divergence_from(outputs, reference) == pytest.approx([0, 0, turned], abs=1e-12)
    # 140 found 180 and now finds 90; 180 found 140, and as 200 finds 230. The others stay.
    assert metric.agreement(outputs, reference).tolist() == [1, 0.5, 0.5]
    assert metric.agreement(reference, reference).tolist() == [1, 1, 1]


def test_retrieval_of_broken_embeddings() -> None:
    reference = np.stack([_turned(0, 90, 180), _turned(10, 140, 230)], axis=1)
    outputs = reference.copy()
    outputs[0, 1] = np.nan
    metric = Retrieval()
    found = metric.scores(outputs, None)
    assert found["top1"][0] == found["mrr"][0] == 0
    assert metric.divergence_from(outputs, reference)[0] == np.inf
    assert metric.agreement(outputs, reference)[0] == 0
    with pytest.raises(InvalidModel, match="sample 0 is not finite"):
        metric.divergence_from(reference, outputs)
