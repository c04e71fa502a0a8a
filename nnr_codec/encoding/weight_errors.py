"""Reports of coded tensors, and of weights in factors: of the dense weights that decoders make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np

from ..errors import QuantizationOverflow
from ..factorization.factor_tracker import FactorTracker
from ..model import Parameter, dtype_name
from ..quantize.distortion import Distortion, weight_error
from ..report import TensorReport
from ..support.blas_threads import on_one_blas_thread
from ..support.shared_function import call_portably
from .factor_transport import FactorTransport
from .tensor_quantizer import QuantizedFactor, QuantizedTensor
from .tensor_survey import TensorSurvey
from .tensor_work import results_of
from .updates.difference import Difference, reported


@dataclass(frozen=True, slots=True)
class FactoringErrors:
    """The errors of one weight that travels as factors, against its dense values.

    Attributes:
        unquantized: of the product of its factors as they were given.
        decoded: of what decoders make of the quantized factors.
    """

    unquantized: Distortion
    decoded: Distortion


@on_one_blas_thread
def factoring_errors(
    transports: Mapping[str, FactorTransport],
    quantized: Mapping[str, QuantizedFactor],
    executor: Executor | None,
) -> dict[str, FactoringErrors]:
    """Measure the errors of weights, each of which is read once.

    Args:
        transports: the weights, by name.
        quantized: those of their factors that do not come back exactly, by name.
        executor: measures them side by side.

    Raises:
        QuantizationOverflow: the quantized factors of a weight make values beyond its element type,
            which they do not without quantization.
    """
    exact = {p.name: p for transport in transports.values() for p in transport.new_factors}
    comparisons = (
        _Comparison(
            transport,
            tuple(quantized.get(name) or exact[name] for name in transport.entry.factors),
        )
        for transport in transports.values()
    )
    errors = results_of(executor, _errors, comparisons)
    return dict(zip(transports, errors, strict=True))


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A weight, and the factors that decoders have of it."""

    transport: FactorTransport
    factors: tuple[QuantizedFactor | Parameter, ...]

    @property
    def elements(self) -> int:
        return self.transport.weight.size

    def loaded(self) -> _Comparison:
        weight = self.transport.weight.loaded()
        return replace(self, transport=replace(self.transport, weight=weight, new_factors=()))

    def errors(self) -> FactoringErrors:
        weight, entry = self.transport.weight, self.transport.entry
        values = weight.read()
        unquantized = weight_error(values, self.transport.factored.to_dense())
        decoded = weight_error(values, entry.dense([factor.read() for factor in self.factors]))
        if decoded.overflows and not unquantized.overflows:
            reason = f"its quantized factors make values too large for {weight.dtype}"
            raise QuantizationOverflow(weight.name, reason)
        return FactoringErrors(unquantized, decoded)


@on_one_blas_thread
def _errors(comparison: _Comparison) -> FactoringErrors:
    """Measure, in another process perhaps, whose BLAS has as many threads as it likes."""
    return call_portably(comparison.transport.weight.name, comparison.errors)


def merged_reports(
    reports: Iterable[TensorReport],
    transports: Mapping[str, FactorTransport],
    errors: Mapping[str, FactoringErrors],
) -> Iterator[TensorReport]:
    """Yield the reports of a model's tensors, those of a weight's factors in one.

    `errors`: of the weights, by name.
    """
    new_factors = {name: [p.name for p in t.new_factors] for name, t in transports.items()}
    factors = FactorTracker[TensorReport](new_factors)
    for report in reports:
        if report.name not in factors:
            yield report
        for name in factors.add(report.name, report):
            yield _merged(transports[name], factors.release(name), errors[name])


def _merged(
    transport: FactorTransport, factors: Sequence[TensorReport], errors: FactoringErrors
) -> TensorReport:
    weight = transport.weight
    losses = [factor.result_loss for factor in factors if factor.result_loss is not None]
    return TensorReport(
        weight.name,
        weight.shape,
        weight.dtype.name,
        transport.entry.form,
        weight.nbytes,
        sum(factor.bytes for factor in factors),
        squared_error=errors.decoded.squared_error,
        energy=errors.decoded.energy,
        decomposition_squared_error=errors.unquantized.squared_error,
        result_loss=sum(losses) if losses and len(losses) == len(factors) else None,
        factors=tuple(factors),
    )


def tensor_report(
    parameter: Parameter, kind: str, unit_bytes: int, qp: int | None = None
) -> TensorReport:
    """Report a coded tensor: of a difference the tensor that it makes."""
    tensor = reported(parameter)
    name, shape, dtype = tensor.name, tensor.shape, dtype_name(tensor.dtype)
    report = TensorReport(name, shape, dtype, kind, tensor.nbytes, unit_bytes, qp)
    return replace(report, is_difference=isinstance(parameter, Difference))


def quantized_report(
    quantized: QuantizedTensor, survey: TensorSurvey, unit_bytes: int
) -> TensorReport:
    """Report a quantized tensor, to which a unit's bytes are ascribed."""
    kind = "dq" if quantized.options.dq else "uniform"
    return replace(
        tensor_report(quantized.parameter, kind, unit_bytes, quantized.qp),
        squared_error=quantized.distortion.squared_error,
        energy=quantized.distortion.energy,
        result_loss=result_loss(quantized, survey),
    )


def result_loss(quantized: QuantizedTensor, survey: TensorSurvey) -> float | None:
    """Return about what the errors of a tensor add to the divergence of the network's result, by
    the calibration; None if that does not know."""
    if survey.sensitivity is None:
        return None
    loss, feedback = quantized.distortion.squared_error, survey.read_feedback()
    if feedback is not None:
        error = quantized.parameter.read().reshape(-1).astype(np.float32)
        error -= quantized.decoded()
        loss = feedback.loss(error)
    return 0.5 * survey.sensitivity * loss
