"""The survey: what can be known of each tensor by itself, learned in one walk over a model.

It serves however often the model is encoded, at whatever qp and in whatever profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..calibration.factor_knowledge import factor_knowledge, shared_knowledge
from ..calibration.moments import Calibration, TensorKnowledge
from ..factorization.factor_tracker import users_of
from ..factorization.forms import FactoredWeight
from ..factorization.metadata import carried_metadata
from ..factorization.model_map import ModelMap
from ..model import Model, Parameter
from ..options import EncodeOptions
from ..quantize.feedback import ErrorFeedback
from ..quantize.spilled_feedback import spilled
from ..support.shared_function import call_portably
from ..support.spilled import SpillFile
from .factor_transport import FactorTransport, transport_factors
from .model_mapping import map_model
from .tensor_survey import TensorQuestion, TensorSurvey
from .tensor_work import results_of
from .updates.update_plan import planned_update
from .updates.update_source import UpdateSource
from .work import UNWATCHED, Work

_BATCH = 1 << 18
"""Elements that small tensors have together where they are looked at in one call."""

_OF_THE_NETWORK = ("feedback", "feedback_source", "feedback_reason", "sensitivity", "large")
"""What is known of a tensor for all of its values, also if these change a little."""


@dataclass(frozen=True, slots=True)
class ModelSurvey:
    """What is known of a model before a stream of it is planned.

    Attributes:
        names: of the model's tensors.
        factored: the weights that travel as factors, by name.
        coded: the tensors that get data units, in order: factors in place of their weights; in an
            update some as differences.
        model_map: what decoders need to know, except the order and the meanings of the tensors.
        tensors: what is known of each coded tensor, by name.
        notes: sentences about what of the model's file is not coded.
    """

    names: list[str]
    factored: Mapping[str, FactorTransport]
    coded: list[Parameter]
    model_map: ModelMap
    tensors: Mapping[str, TensorSurvey]
    notes: tuple[str, ...] = ()


def survey_model(
    model: Model,
    factorizations: Mapping[str, FactoredWeight],
    options: EncodeOptions,
    work: Work = UNWATCHED,
    calibration: Calibration | None = None,
    spill: SpillFile | None = None,
    update: UpdateSource | None = None,
) -> ModelSurvey:
    """Read each tensor that is coded, and return what is known of it.

    Args:
        model: the model.
        factorizations: the weights that travel as factors, by name.
        options: of the encoder.
        work: looks at tensors side by side, and is told when they are "surveyed".
        calibration: moments of the inputs of layers, if they are known.
        spill: where the feedback of tensors waits; None: in memory.
        update: what the model is coded as an update of; None: it stands by itself.

    Raises:
        InvalidModel: a tensor cannot be coded; the first one in order is named.
    """
    factored = transport_factors(model, factorizations, options)
    coded, model_map = map_model(model.values(), factored)
    if update is not None:
        coded, model_map = planned_update(
            model.names(), coded, model_map, options, update, work.executor
        )
    in_blocks = {
        p.name for weight in factored.values() if weight.is_block for p in weight.new_factors
    }
    known = _Knowledge(calibration, factored)
    questions = (
        TensorQuestion.about(
            parameter,
            options,
            must_be_quantized=parameter.name in in_blocks,
            knowledge=known.of(parameter.name),
        )
        for parameter in coded
    )
    answers = results_of(work.executor, _surveys, _batches(questions))
    tensors: dict[str, TensorSurvey] = {}
    for batch in answers:
        parameters = coded[len(tensors) : len(tensors) + len(batch)]
        batch = batch if spill is None else [_spilled(each, spill) for each in batch]
        tensors.update(zip((parameter.name for parameter in parameters), batch, strict=True))
        work.tell("surveyed", sum(parameter.size for parameter in parameters))
    metadata, notes = carried_metadata(model.metadata)
    model_map = replace(model_map, metadata=metadata)
    return ModelSurvey(model.names(), factored, coded, model_map, tensors, (*model.notes, *notes))


def _spilled(survey: TensorSurvey, file: SpillFile) -> TensorSurvey:
    """Return a survey whose feedback is in a file."""
    if not isinstance(survey.feedback, ErrorFeedback):
        return survey
    return replace(survey, feedback=spilled(survey.feedback, file))


def with_values(
    survey: ModelSurvey, changed: Mapping[str, Parameter], options: EncodeOptions
) -> ModelSurvey:
    """Return the survey of a model in which coded tensors have other values.

    What is known of the network stays.

    Args:
        survey: of the model as it was.
        changed: those tensors, by name, of the shapes and types that they had; no factors.
        options: of the encoder.
    """
    tensors = dict(survey.tensors)
    for name, parameter in changed.items():
        question = TensorQuestion.about(parameter, options, must_be_quantized=False)
        known = {part: getattr(tensors[name], part) for part in _OF_THE_NETWORK}
        tensors[name] = replace(question.answer(), **known)
    coded = [changed.get(parameter.name, parameter) for parameter in survey.coded]
    return replace(survey, coded=coded, tensors=tensors)


class _Knowledge:
    """What a calibration tells of tensors that are coded: of factors by way of their weights."""

    def __init__(
        self, calibration: Calibration | None, factored: Mapping[str, FactorTransport]
    ) -> None:
        self._calibration = calibration
        self._factored = factored
        self._users = users_of({name: t.entry.factors for name, t in factored.items()})

    def of(self, name: str) -> TensorKnowledge | None:
        """Return what is known of a tensor; None: nothing was to be known."""
        if self._calibration is None:
            return None
        if name not in self._users:
            return self._calibration.tensor(name) or TensorKnowledge()
        return shared_knowledge(
            factor_knowledge(
                self._factored[weight].factored,
                self._factored[weight].entry.factors.index(name),
                self._calibration.tensor(weight),
            )
            for weight in self._users[name]
        )


@dataclass(frozen=True, slots=True)
class _Batch:
    """Questions that one call answers, or their answers."""

    questions: list[TensorQuestion | TensorSurvey]
    elements: int

    def loaded(self) -> _Batch:
        loaded = [
            q.answered_or_loaded() if isinstance(q, TensorQuestion) else q for q in self.questions
        ]
        return replace(self, questions=loaded)


def _batches(questions: Iterable[TensorQuestion]) -> Iterator[_Batch]:
    """Put questions about small tensors together, of which little is known."""
    waiting: list[TensorQuestion | TensorSurvey] = []
    elements = 0
    for question in questions:
        size = question.parameter.size + question.known_values
        if waiting and elements + size > _BATCH:
            yield _Batch(waiting, elements)
            waiting, elements = [], 0
        waiting.append(question)
        elements += size
    if waiting:
        yield _Batch(waiting, elements)


def _surveys(batch: _Batch) -> list[TensorSurvey]:
    return [
        call_portably(q.parameter.name, q.answer) if isinstance(q, TensorQuestion) else q
        for q in batch.questions
    ]
