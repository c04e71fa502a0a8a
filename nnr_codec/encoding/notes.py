"""What users are told of tensors that are not coded, or do not come back, as one may expect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from ..options import EncodeOptions
from ..report import TensorReport
from ..support.listed import listed
from .plan import CodingChoice
from .survey import ModelSurvey
from .tensor_feedback import NO_MOMENTS
from .tensor_quantizer import fits_step, nominal_qp

_DAMAGE = 0.1
"""Of a tensor's energy, beyond which its loss is told."""

_FELT = 0.1
"""Divergence of the result, in nats, that is small beside that of a network that lost accuracy."""

_MOST_DAMAGED = 5
"""Tensors that are named with their errors."""

_INSTEAD = ("quantized as without data", "errors of the layer's outputs count, not of the result")
"""What is done where moments of gradients are missing: without others, and with those of inputs."""


def choice_notes(
    survey: ModelSurvey, choices: Mapping[str, CodingChoice], options: EncodeOptions
) -> Iterator[str]:
    """Yield sentences about the tensors that are not as one may expect."""
    for parameter in survey.coded:
        name, known = parameter.name, survey.tensors[parameter.name]
        choice = choices.get(name, CodingChoice())
        own = options.for_tensor(name)
        if known.unquantizable is not None:
            yield f"{name!r} holds {known.unquantizable}: it is coded exactly"
            continue
        if not known.is_quantized or choice == CodingChoice():
            continue
        how = f"coded at qp {choice.qp}" if choice.exact is None else "coded exactly"
        qp = nominal_qp(parameter, own)
        if not fits_step(parameter, own, known.largest):
            what = f"values as large as {known.largest:g}, too large for qp {qp}"
            yield f"{name!r} holds {what}: it is {how}"
        elif choice.is_protected:
            yield f"{name!r} would lose too much at qp {qp}: it is {how}"


def calibration_notes(survey: ModelSurvey) -> Iterator[str]:
    """Yield a sentence for each reason why a calibration tells less of tensors than it should, with
    their names and what is done instead."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for name, known in survey.tensors.items():
        if known.is_quantized and known.feedback_reason not in ("", NO_MOMENTS):
            instead = _INSTEAD[known.feedback is not None]
            by_reason.setdefault((known.feedback_reason, instead), []).append(name)
    for (reason, instead), names in by_reason.items():
        yield f"{listed(names)}: {reason}: {instead}"


def damage_notes(tensors: Iterable[TensorReport], options: EncodeOptions) -> Iterator[str]:
    """Yield a sentence about the tensors that quantization damaged and nothing protected, if any.

    What a calibration tells of counts more: while the result hardly feels all errors together,
    those of which it is known are none.

    Args:
        tensors: the reports of the model's tensors.
        options: of the encoder.
    """
    coded = list(chain.from_iterable(tensor.factors or (tensor,) for tensor in tensors))
    hardly_felt = sum(tensor.result_loss or 0.0 for tensor in coded) < _FELT
    damaged = [
        tensor
        for tensor in coded
        if tensor.nmse > _DAMAGE and not (hardly_felt and tensor.result_loss is not None)
    ]
    damaged = [tensor for tensor in damaged if options.allowed_error(tensor.name) is None]
    if damaged:
        worst = sorted(damaged, key=lambda tensor: -tensor.nmse)[:_MOST_DAMAGED]
        names = ", ".join(f"{tensor.name!r} ({100 * tensor.nmse:.3g} %)" for tensor in worst)
        more = ", …" if len(damaged) > len(worst) else ""
        count = "1 tensor" if len(damaged) == 1 else f"{len(damaged)} tensors"
        yield (
            f"{count} lost more than {100 * _DAMAGE:g} % of the energy: {names}{more}; "
            "max_tensor_error, or a lower qp, keeps more"
        )
