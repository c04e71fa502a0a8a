"""What the outputs of a network are worth, sample by sample, and how far they are from others.

A network whose outputs are not finite is judged and not refused: such a sample is answered wrongly,
agrees with nothing, and is infinitely far. The uncompressed network is refused: nothing can be said
beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from nnr_codec.errors import InvalidModel
from nnr_codec.model import Array, Float64

AGREEMENT = "agreement"
CHUNK = 1000  # samples
Bool = npt.NDArray[np.bool_]


class Metric(Protocol):
    """What a network's outputs are worth, sample by sample.

    All methods are given the outputs of all samples at once, (samples, ...), so that a score may
    depend on the others' (retrieval). Results are (samples,).
    """

    @property
    def primary(self) -> str:
        """Name of the score that stands for accuracy, such as `"top1"`.

        Larger is better: a share in 0..1, or decibels if the name ends with `_db`.
        `"agreement"` where there are no labels.
        """

    @property
    def divergence(self) -> str:
        """What the divergence is, such as `"KL"`."""

    def scores(self, outputs: Array, targets: Any) -> dict[str, Array]:
        """Return scores by name, bool or float; larger is better."""

    def divergence_from(self, outputs: Array, reference: Array) -> Array:
        """Return how far `outputs` are from those of the uncompressed network, 0 and more.

        Raises InvalidModel if nothing can be said beside these, which are not finite.
        """

    def agreement(self, outputs: Array, reference: Array) -> Array:
        """Return how far decisions are the uncompressed network's: bool, or float in 0..1."""


@dataclass(frozen=True)
class Classification:
    """Top-k, KL divergence and agreement of classifiers; outputs are logits (samples, classes).

    Attributes:
        tops: k of the scores `top<k>`. The first is the primary one; of the others those with k of
            at least the number of classes are left out. Without any, targets are not looked at, and
            the agreement with the uncompressed network is primary.
    """

    tops: tuple[int, ...] = (1, 5)

    @property
    def primary(self) -> str:
        return f"top{self.tops[0]}" if self.tops else AGREEMENT

    divergence: ClassVar[str] = "KL"  # Kullback-Leibler, in nats

    def scores(self, outputs: Array, targets: Any) -> dict[str, Array]:
        """Return whether fewer than k logits come before the label's: bool (samples,) each.

        Of equal logits that of the lower class comes first. `targets` are labels (samples,);
        InvalidModel if one is no class of the network.
        """
        if not self.tops:
            return {}
        labels = np.asarray(targets).astype(np.int64)[:, np.newaxis]
        outside = (labels < 0) | (labels >= outputs.shape[1])
        if outside.any():
            reason = f"{int(labels[outside][0])} is none of {outputs.shape[1]} classes"
            raise InvalidModel("targets", reason)
        label_output = np.take_along_axis(outputs, labels, axis=1)
        earlier = np.arange(outputs.shape[1]) < labels
        is_above = (outputs > label_output) | ((outputs == label_output) & earlier)
        rank = np.sum(is_above, axis=1)
        valid = _finite(outputs)
        kept = [k for k in self.tops if k < outputs.shape[1] or k == self.tops[0]]
        return {f"top{k}": valid & (rank < k) for k in kept}

    def divergence_from(self, outputs: Array, reference: Array) -> Float64:
        """Return KL(reference || outputs) of the softmaxes, computed in float64, in nats."""
        _check_reference(reference)
        parts = [  # a softmax in float64 of all samples would take much memory
            _kl_divergence(outputs[start : start + CHUNK], reference[start : start + CHUNK])
            for start in range(0, len(outputs), CHUNK)
        ]
        return np.concatenate(parts)

    def agreement(self, outputs: Array, reference: Array) -> Bool:
        """Return whether the most likely class is the same."""
        same: Bool = np.argmax(outputs, axis=1) == np.argmax(reference, axis=1)
        return same & _finite(outputs)


classification = Classification()
unlabelled_classification = Classification(tops=())


@dataclass(frozen=True)
class Reconstruction:
    """PSNR of networks whose outputs are signals, such as images: (samples, ...).

    Signals of different sizes are padded with NaN at their ends: NaN in targets and in the
    uncompressed network's outputs is not measured.

    Attributes:
        peak: the largest value; outputs are clipped to 0..peak.
        levels: steps from 0 to `peak`, for the agreement.
    """

    peak: float = 1.0
    levels: int = 255

    primary: ClassVar[str] = "psnr_db"  # peak signal-to-noise ratio in dB
    divergence: ClassVar[str] = "MSE"  # mean squared error

    def scores(self, outputs: Array, targets: Any) -> dict[str, Array]:
        """Return the PSNR in dB: float64 (samples,), -inf if an output is not finite."""
        error = self._mean_squared_error(outputs, np.asarray(targets))
        with np.errstate(divide="ignore"):
            return {"psnr_db": 10 * np.log10(self.peak**2 / error)}

    def divergence_from(self, outputs: Array, reference: Array) -> Float64:
        """Return the mean squared error to the uncompressed network's outputs, clipped as well."""
        return self._mean_squared_error(outputs, np.clip(reference, 0, self.peak))

    def agreement(self, outputs: Array, reference: Array) -> Float64:
        """Return the share of values that are the same when rounded to the levels."""
        scale = self.levels / self.peak
        rounded, expected = (
            np.round(np.clip(values, 0, self.peak).astype(np.float64) * scale)
            for values in (outputs, reference)
        )
        return _measured_mean(rounded == expected, reference)

    def _mean_squared_error(self, outputs: Array, expected: Array) -> Float64:
        difference = np.clip(outputs, 0, self.peak).astype(np.float64) - expected
        squared = np.where(np.isfinite(outputs), np.square(difference), np.inf)
        return _measured_mean(squared, expected)


@dataclass(frozen=True)
class Retrieval:
    """Does an embedding find its partner? Outputs are pairs of embeddings, (samples, 2, width).

    Embeddings are of length 1. A sample is a pair; each of its two looks for the other among the
    others of all pairs, and its scores are the means of the two.
    """

    primary: ClassVar[str] = "top1"  # share of embeddings whose partner is the nearest
    divergence: ClassVar[str] = "1-cos"  # one minus the cosine

    def scores(self, outputs: Array, targets: Any) -> dict[str, Array]:
        """Return `top1` and `mrr`, the reciprocal rank of the partner; targets are not used."""
        valid = _finite(outputs)
        ranks = []
        for similarity in _similarities(outputs):
            partner = np.diagonal(similarity)[:, np.newaxis]
            ranks.append(1 + np.sum((similarity > partner) | np.isnan(similarity), axis=1))
        rank = np.stack(ranks)
        return {
            "top1": np.where(valid, np.mean(rank == 1, axis=0), 0),
            "mrr": np.where(valid, np.mean(1 / rank, axis=0), 0),
        }

    def divergence_from(self, outputs: Array, reference: Array) -> Float64:
        """Return 1 - cosine to the uncompressed network's embedding, mean of a pair."""
        _check_reference(reference)
        decoded, expected = outputs.astype(np.float64), reference.astype(np.float64)
        lengths = np.linalg.norm(decoded, axis=2) * np.linalg.norm(expected, axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = np.sum(decoded * expected, axis=2) / lengths
        distance = np.mean(1 - cosine, axis=1)
        return np.where(np.isfinite(distance), np.maximum(distance, 0), np.inf)

    def agreement(self, outputs: Array, reference: Array) -> Float64:
        """Return the share of a pair's two embeddings that find the same nearest one."""
        same = [
            np.argmax(decoded, axis=1) == np.argmax(expected, axis=1)
            for decoded, expected in zip(
                _similarities(outputs), _similarities(reference), strict=True
            )
        ]
        return np.where(_finite(outputs), np.mean(same, axis=0), 0)


def _similarities(pairs: Array) -> tuple[Array, Array]:
    """Return the similarity of each first with every second, and of each second with every first.

    Both are (samples, samples), with partners on the diagonal.
    """
    forth = pairs[:, 0] @ pairs[:, 1].T
    return forth, forth.T


def _finite(outputs: Array) -> Bool:
    """Return for each sample whether all of its outputs are finite."""
    finite: Bool = np.all(np.isfinite(outputs).reshape(len(outputs), -1), axis=1)
    return finite


def _check_reference(reference: Array) -> None:
    valid = _finite(reference)
    if not valid.all():
        reason = f"the output of sample {int(np.argmin(valid))} is not finite"
        raise InvalidModel("uncompressed network", reason)


def _kl_divergence(outputs: Array, reference: Array) -> Float64:
    valid = _finite(outputs)
    expected = _log_softmax(reference)
    decoded = _log_softmax(np.where(valid[:, np.newaxis], outputs, 0))
    divergence = np.sum(np.exp(expected) * (expected - decoded), axis=1)
    return np.where(valid, np.maximum(divergence, 0), np.inf)  # rounding can go below 0


def _log_softmax(logits: Array) -> Float64:
    values = logits.astype(np.float64)
    values = values - values.max(axis=1, keepdims=True)
    result: Float64 = values - np.log(np.sum(np.exp(values), axis=1, keepdims=True))
    return result


def _measured_mean(values: Array, expected: Array) -> Float64:
    """Return the mean of each sample's values where `expected` is not NaN."""
    axes = tuple(range(1, values.ndim))
    measured = ~np.isnan(expected)
    empty = ~np.any(measured, axis=axes)
    if empty.any():
        reason = f"of sample {int(np.argmax(empty))} every value is NaN"
        raise InvalidModel("uncompressed network or targets", reason)
    mean: Float64 = np.mean(values, axis=axes, where=measured, dtype=np.float64)
    return mean
