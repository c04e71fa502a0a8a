"""The survey: what can be known of each tensor by itself, learned in one walk over a model.

None of it depends on a qp or a profile: it serves however often the model is encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from ..factorization.forms import FactoredWeight
from ..factorization.metadata import carried_metadata
from ..factorization.model_map import ModelMap
from ..model import Float64, Model, Parameter
from ..options import EncodeOptions
from ..quantize.grids import exact_step
from ..quantize.integer_rate import sampled
from ..support.shared_function import call_portably
from .exact import name_parts, represent
from .factor_transport import FactorTransport, transport_factors
from .model_mapping import is_quantized, map_model, may_need_representation, with_representations
from .representation import Representation
from .tensor_quantizer import largest_quantizable
from .tensor_work import results_of

_BATCH = 1 << 18
"""Elements that small tensors have together where they are looked at in one call."""

_SAMPLE = 1 << 11
"""Values of a tensor by which its size is estimated."""


@dataclass(frozen=True, slots=True)
class TensorSurvey:
    """What is known of one tensor.

    Attributes:
        is_quantized: whether it is quantized.
        exact: of a tensor that is not, how it is coded exactly; None: as the integers it has.
        step_qp: of one that is, the qp of a step of which all values are multiples; None without
            such a step, or if all values are 0.
        largest: of one that is, the largest magnitude.
        sample: of one that is, some values, float64, flat, if there is a target size.
    """

    is_quantized: bool = False
    exact: Representation | None = None
    step_qp: int | None = None
    largest: float = 0.0
    sample: Float64 | None = None

    def coded_names(self, parameter: Parameter) -> list[str]:
        """Return the names that the tensor has in data units, that of a part first."""
        part = self.exact.entry.part if self.exact is not None else None
        return [parameter.name] if part is None else [part, parameter.name]


@dataclass(frozen=True, slots=True)
class ModelSurvey:
    """What is known of a model before a stream of it is planned.

    Attributes:
        factored: the weights that travel as factors, by name.
        coded: the tensors that get data units, in order: factors in place of their weights.
        model_map: what decoders need to know, except the order of the tensors.
        tensors: what is known of each coded tensor, by name.
        notes: sentences about what of the model's file is not coded.
    """

    factored: Mapping[str, FactorTransport]
    coded: list[Parameter]
    model_map: ModelMap
    tensors: Mapping[str, TensorSurvey]
    notes: tuple[str, ...] = ()

    @property
    def coded_names(self) -> list[str]:
        """The names of all tensors in data units, in order."""
        names = (self.tensors[parameter.name].coded_names(parameter) for parameter in self.coded)
        return list(chain.from_iterable(names))


def survey_model(
    model: Model,
    factorizations: Mapping[str, FactoredWeight],
    options: EncodeOptions,
    executor: Executor | None = None,
) -> ModelSurvey:
    """Read each tensor that is coded, and return what is known of it.

    Args:
        model: the model.
        factorizations: the weights that travel as factors, by name.
        options: of the encoder.
        executor: looks at tensors side by side.

    Raises:
        InvalidModel: a tensor cannot be coded; the first one in order is named.
    """
    factored = transport_factors(model, factorizations, options)
    coded, model_map = map_model(model.values(), factored)
    questions = (_Question.about(parameter, options) for parameter in coded)
    answers = results_of(executor, _surveys, _batches(questions))
    surveys = [survey for batch in answers for survey in batch]
    tensors = dict(zip((parameter.name for parameter in coded), surveys, strict=True))
    reserved = [name for weight in factored.values() for name in weight.names]
    exact = {name: survey.exact for name, survey in tensors.items() if survey.exact is not None}
    exact = name_parts(exact, [*model.names(), *reserved])
    tensors |= {name: TensorSurvey(exact=representation) for name, representation in exact.items()}
    metadata, notes = carried_metadata(model.metadata)
    model_map = replace(with_representations(model_map, exact), metadata=metadata)
    return ModelSurvey(factored, coded, model_map, tensors, (*model.notes, *notes))


@dataclass(frozen=True, slots=True)
class _Question:
    """What is to be learned of one tensor."""

    parameter: Parameter
    density: int
    is_quantized: bool
    is_exact: bool
    codebook: bool
    needs_sample: bool

    @classmethod
    def about(cls, parameter: Parameter, options: EncodeOptions) -> _Question:
        quantized = is_quantized(parameter, options)
        exact = not quantized and may_need_representation(parameter)
        codebook = exact and bool(options.for_tensor(parameter.name).codebook)
        needs_sample = options.target_size is not None
        return cls(parameter, options.qp_density, quantized, exact, codebook, needs_sample)

    def answered_or_loaded(self) -> _Question | TensorSurvey:
        """Answer if that is quicker than sending the tensor; else load it for another process."""
        return replace(self, parameter=self.parameter.loaded()) if self.is_exact else self.answer()

    def answer(self) -> TensorSurvey:
        if not self.is_quantized and not self.is_exact:
            return TensorSurvey()
        values = self.parameter.read()
        if self.is_exact:
            return TensorSurvey(exact=represent(values, self.density, self.codebook))
        largest = largest_quantizable(self.parameter.name, values)
        step = exact_step(values, self.density)
        step_qp = step[0] if step is not None and largest else None
        sample = sampled(values, _SAMPLE).astype(np.float64) if self.needs_sample else None
        return TensorSurvey(is_quantized=True, step_qp=step_qp, largest=largest, sample=sample)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Questions that one call answers, or their answers."""

    questions: list[_Question | TensorSurvey]
    elements: int

    def loaded(self) -> _Batch:
        loaded = [q.answered_or_loaded() if isinstance(q, _Question) else q for q in self.questions]
        return replace(self, questions=loaded)


def _batches(questions: Iterable[_Question]) -> Iterator[_Batch]:
    """Put questions about small tensors together."""
    waiting: list[_Question | TensorSurvey] = []
    elements = 0
    for question in questions:
        size = question.parameter.size
        if waiting and elements + size > _BATCH:
            yield _Batch(waiting, elements)
            waiting, elements = [], 0
        waiting.append(question)
        elements += size
    if waiting:
        yield _Batch(waiting, elements)


def _surveys(batch: _Batch) -> list[TensorSurvey]:
    return [
        call_portably(q.parameter.name, q.answer) if isinstance(q, _Question) else q
        for q in batch.questions
    ]
