"""Reports on an encoded model, and totals of a stream: dataclasses, also as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Stage = Literal["surveyed", "chosen", "quantized", "coded", "measured", "verified"]
"""What has been done to a tensor on its way into a stream, in this order: see ``nnr_codec.encode``;
"chosen" is how it is coded, and "measured" is the stream that it is in, for a target of quality."""

FeedbackSource = Literal["result", "inputs", "none"]
"""What errors of a tensor were fed back by: moments of gradients, those of its layer's inputs, or
nothing."""

StepSource = Literal["options", "given", "sensitivity", "size", "centre", "protection", "range"]
"""What the step of a tensor follows: qp or nonweight_qp; an override of the user; the calibration;
the sizes of tensors; the centre of the calibrated weights, of a vector of which nothing is known;
the error that the tensor may have; or the range of its integers."""

OnStage = Callable[[Stage, int], object]
"""Called when a stage is done, with the number of elements, by whichever thread does it."""


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor of an encoded model.

    Attributes:
        name, shape, dtype: the tensor as it was given.
        kind: "dq" or "uniform"; "step": exact with the standard's elements; "int" or "raw": as it
            is; "grid", "groups", "table", "bits", "halves", "mantissas" or
            "fields": exact with the model map; "words" or "xor": exact as integers that are added
            to the bits of a base's tensor, or say which of them change; of a weight that travels
            as factors: its form.
        original_bytes: bytes of its values.
        bytes: bytes of its data unit, or units; 0 for a tensor of a block other than its weight.
        qp: quantization parameter, or None.
        squared_error, energy: sums over its elements, of the squares of the errors and of the
            values; of a weight that travels as factors the error is that of the dense weight which
            decoders make of them. Both are 0 for what travels exactly, and not finite for such a
            weight if its values are not.
        decomposition_squared_error: what that would be if the factors were not quantized; 0 for all
            other tensors. The rest of `squared_error` is about what quantization adds.
        result_loss: about what its errors add to the divergence of the network's result (nats, or
            half the squared error), by the calibration; None: not known. Of a weight that travels
            as factors it is what quantization of these adds, without the decomposition.
        step_by: what its qp follows; None: it travels exactly, or as factors.
        feedback: what its errors were fed back by; None: nothing was to be known of it.
        feedback_reason: why it is "none", or not "result"; empty: there is nothing to say.
        is_difference: whether it is coded as what is added to that of a base; its errors are those
            against the tensor as it was given nevertheless.
        factors: the reports of the factors that are coded for it (an earlier weight may have coded
            others); bytes are shared out among those of one data unit. The errors are the
            factors'.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    original_bytes: int
    bytes: int
    qp: int | None = None
    squared_error: float = 0.0
    energy: float = 0.0
    decomposition_squared_error: float = 0.0
    result_loss: float | None = None
    step_by: StepSource | None = None
    feedback: FeedbackSource | None = None
    feedback_reason: str = ""
    is_difference: bool = False
    factors: tuple[TensorReport, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the data unit per element."""
        return 8 * self.bytes / self.elements

    @property
    def nmse(self) -> float:
        """Squared error over energy: 0 without an error, infinite if all values were 0."""
        return _relative(self.squared_error, self.energy)

    @property
    def decomposition_nmse(self) -> float:
        """The same of the decomposition alone, without quantization."""
        return _relative(self.decomposition_squared_error, self.energy)

    @property
    def parameters(self) -> int:
        """Elements that are coded: those of the factors instead of those of the weight, if any."""
        return sum(factor.elements for factor in self.factors) or self.elements

    def errors_to_json(self) -> dict[str, float | None]:
        """Return errors and energy as JSON-ready data; None where they are not finite."""
        return {name: _finite(getattr(self, name)) for name in _ERRORS}


_ERRORS = ("squared_error", "energy", "decomposition_squared_error", "nmse", "decomposition_nmse")


def _relative(squared_error: float, energy: float) -> float:
    if not squared_error:
        return 0.0
    return squared_error / energy if energy else math.inf


def _finite(value: float) -> float | None:
    """Return the value, or None if JSON cannot say it."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class ExtraReport:
    """A tensor that has no bytes of its own.

    Attributes:
        name, shape, dtype: the tensor.
        tied_to: name of the tensor that it is one with; None: it is empty.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    tied_to: str | None = None

    @property
    def kind(self) -> str:
        """ "tied to …" or "empty"."""
        return "empty" if self.tied_to is None else f"tied to {self.tied_to}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A stream that was made on the way to a target.

    Attributes:
        qp_offset: what was added to every qp.
        bytes: of the stream; None: there is none.
        nmse: squared error over energy of what is coded; of weights in factors it is theirs.
        loss: what a target of quality bounds: NMSE, divergence, or drop of the score; infinite
            where nothing finite comes out. None: the target is one of bytes.
        profile: general_profile_idc.
        compared: whether the stream was made in the other profile as well, where it was larger.
        failure: why there is no stream, or none to be measured: a tensor and its reason.
        is_corrected: whether its vectors are corrected; the search itself makes none that are.
    """

    qp_offset: int
    bytes: int | None = None
    nmse: float | None = None
    loss: float | None = None
    profile: int = 0
    compared: bool = False
    failure: str | None = None
    is_corrected: bool = False


@dataclass(frozen=True, slots=True)
class SearchReport:
    """What the search for a target saw.

    Attributes:
        target: name of the option.
        bound: the most that the bytes, or the losses, may be.
        evaluations: in the order in which they were made.
        kept: the offset of the stream that was kept.
        reference: what ``evaluate`` returned of the model itself, for a target of a drop.
        resumed: how many of the evaluations an interrupted search had made before.
    """

    target: str
    bound: float
    evaluations: tuple[Evaluation, ...]
    kept: int
    reference: float | None = None
    resumed: int = 0

    @property
    def met(self) -> Evaluation:
        """The stream that was kept, as it was measured last."""
        return [seen for seen in self.evaluations if seen.qp_offset == self.kept][-1]

    def with_corrected(self, seen: Evaluation) -> SearchReport:
        """Return the report when a stream with corrected vectors is kept in place of another."""
        return replace(self, kept=seen.qp_offset, evaluations=(*self.evaluations, seen))

    def to_json(self, elements: int) -> dict[str, Any]:
        """Return JSON-ready data; `elements`: of the model."""
        rows = []
        for seen in self.evaluations:
            bits = None if seen.bytes is None or not elements else 8 * seen.bytes / elements
            errors = {"nmse": seen.nmse, "loss": seen.loss}
            finite = {n: None if value is None else _finite(value) for n, value in errors.items()}
            rows.append({**asdict(seen), **finite, "bits_per_weight": bits})
        return {**asdict(self), "evaluations": rows}


@dataclass(frozen=True, slots=True)
class CorrectionReport:
    """What of a stream was corrected after quantization, by calibration samples.

    Attributes:
        methods: "moved": weights make up for what quantization did to the layers before them, and
            were quantized once more; "channels": means and deviations of channels became those of
            the original network; "tuned": vectors learned from its outputs.
        tensors: names of the vectors.
        before, after: the divergence of the outputs without and with all this, on samples that
            were held back; where weights were moved, as they are or perturbed, whichever tells more
            of it.
        weights: names of the weights that were moved.
    """

    methods: tuple[str, ...]
    tensors: tuple[str, ...]
    before: float
    after: float
    weights: tuple[str, ...] = ()


class StreamTotals:
    """The sums over a stream's tensors, of which each has bytes, original_bytes and elements."""

    __slots__ = ()
    tensors: tuple[Any, ...]
    header_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes of the stream."""
        return self.header_bytes + int(sum(tensor.bytes for tensor in self.tensors))

    @property
    def original_bytes(self) -> int:
        """Bytes of the tensors' values, decoded."""
        return sum(tensor.original_bytes for tensor in self.tensors)

    @property
    def elements(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the stream per element; 0 for a stream without tensors."""
        return 8 * self.bytes / self.elements if self.elements else 0.0

    @property
    def ratio(self) -> float:
        """Stream over decoded tensors, in bytes; 0 for a stream without tensors."""
        return self.bytes / self.original_bytes if self.original_bytes else 0.0

    def _totals(self) -> dict[str, Any]:
        return {
            "tensors": len(self.tensors),
            "elements": self.elements,
            "original_bytes": self.original_bytes,
            "bytes": self.bytes,
            "header_bytes": self.header_bytes,
            "bits_per_weight": self.bits_per_weight,
            "ratio": self.ratio,
        }

    def _rows(self) -> list[dict[str, Any]]:
        return [{**asdict(t), "bits_per_weight": t.bits_per_weight} for t in self.tensors]


@dataclass(frozen=True, slots=True)
class EncodeReport(StreamTotals):
    """An encoded model.

    Attributes:
        tensors: in the order of the model.
        header_bytes: bytes of the units that hold no tensor.
        seconds: wall time of the encoding.
        profile: general_profile_idc.
        unmatched: globs of the options that match no tensor.
        qp_offset: what was added to every qp to reach a target.
        encodings: streams that were begun, this one included.
        search: what the search for a target saw; None: there was no target.
        folded: names of the scales of batch norms that are folded; the errors of their vectors are
            those against what they were folded to.
        correction: what was corrected after quantization; None: nothing. The errors of these
            tensors are those against what they were corrected to.
        calibrated: with what, and what the network's outputs were taken for; empty: it was not.
        extras: the tensors that have no bytes of their own: empty ones, and ties.
        notes: sentences about what is not as one may expect: what was left out, coded exactly or
            more finely, and what was damaged.
    """

    tensors: tuple[TensorReport, ...]
    header_bytes: int
    seconds: float
    profile: int
    unmatched: tuple[str, ...] = ()
    qp_offset: int = 0
    encodings: int = 1
    search: SearchReport | None = None
    folded: tuple[str, ...] = ()
    correction: CorrectionReport | None = None
    calibrated: str = ""
    extras: tuple[ExtraReport, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def nmse(self) -> float:
        """Squared error over energy, of all tensors together that do not travel exactly.

        It is that of what is decoded, dense, against the model that was given.
        """
        return _relative(sum(t.squared_error for t in self.tensors), self._energy)

    @property
    def result_loss(self) -> float | None:
        """About how much the network's result diverges, as far as the calibration knows; or None.

        Errors of tensors are taken for independent, and for small.
        """
        known = [t.result_loss for t in self.tensors if t.result_loss is not None]
        return sum(known) if known else None

    @property
    def worst(self) -> TensorReport | None:
        """The tensor, or the factor, that lost most of its energy; None if there is no tensor."""
        coded = (t for tensor in self.tensors for t in tensor.factors or (tensor,))
        return max(coded, key=lambda tensor: tensor.nmse, default=None)

    @property
    def decomposition_nmse(self) -> float:
        """The same of the decomposition alone, had nothing been quantized."""
        return _relative(sum(t.decomposition_squared_error for t in self.tensors), self._energy)

    @property
    def _energy(self) -> float:
        return sum(tensor.energy for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Elements of all that is coded: of factors, not of the weights that they stand for."""
        return sum(tensor.parameters for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Return totals and tensors as JSON-ready data."""
        totals = {
            "profile": self.profile,
            **self._totals(),
            "parameters": self.parameters,
            "nmse": _finite(self.nmse),
            "worst_tensor": self.worst.name if self.worst else None,
            "worst_nmse": _finite(self.worst.nmse) if self.worst else None,
            "decomposition_nmse": _finite(self.decomposition_nmse),
            "result_loss": self.result_loss,
            "calibrated": self.calibrated,
            "seconds": self.seconds,
            "unmatched_globs": list(self.unmatched),
            "qp_offset": self.qp_offset,
            "encodings": self.encodings,
            "search": self.search.to_json(self.elements) if self.search else None,
            "folded": list(self.folded),
            "correction": asdict(self.correction) if self.correction else None,
            "extras": [asdict(extra) for extra in self.extras],
            "notes": list(self.notes),
        }
        rows = zip(self._rows(), self.tensors, strict=True)
        return {**totals, "per_tensor": [{**row, **t.errors_to_json()} for row, t in rows]}


def size_text(count: float) -> str:
    """Return bytes for people: three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:#.3g} {unit}"
