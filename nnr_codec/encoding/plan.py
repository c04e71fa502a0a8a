"""The plan of one stream: which tensors go into which data unit, and with which options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from ..bitstream import Context, DataUnit, ModelParameterSet, NodeId, PayloadType
from ..decoding.series import Series
from ..errors import InvalidModel, InvalidOptions
from ..factorization.model_map import ModelMap
from ..factorization.tensor_order import TensorOrder
from ..model import Parameter
from ..options import DecodeLimits, EncodeOptions
from .arrangement.grouping import USUALLY_SAVED_BYTES, Grouping, group_layers, ungrouped
from .exact import name_parts
from .model_mapping import with_representations
from .representation import Representation
from .survey import ModelSurvey
from .tensor_quantizer import nominal_qp, quantize_tensor, with_qp
from .tensor_survey import TensorSurvey
from .tool_search import ToolSearch


@dataclass(frozen=True, slots=True)
class CodingChoice:
    """How one tensor is coded otherwise than its options say.

    Attributes:
        exact: its representation, if it is coded exactly; else:
        qp: in place of that of its options.
        is_protected: whether it would have lost more than it may.
    """

    exact: Representation | None = None
    qp: int | None = None
    is_protected: bool = False


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of a data unit.

    Attributes:
        parameter: the tensor.
        options: those of the tensor, with the qp that it gets.
        survey: what is known of it.
        exact: how it is coded, if not quantized; None: as the integers it has.
        is_factor: whether a weight is made of it.
    """

    parameter: Parameter
    options: EncodeOptions
    survey: TensorSurvey
    exact: Representation | None = None
    is_factor: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether it is quantized."""
        return self.survey.is_quantized and self.exact is None

    @property
    def coded_names(self) -> list[str]:
        """The names that it has in data units, that of a part first."""
        part = self.exact.entry.part if self.exact is not None else None
        return [self.parameter.name] if part is None else [part, self.parameter.name]

    @property
    def is_on_step(self) -> bool:
        """Whether a step that is not finer than the quantizer's says its values, and that has to be
        in a unit by itself."""
        step_qp, qp = self.survey.step_qp, nominal_qp(self.parameter, self.options)
        return step_qp is not None and step_qp >= qp and not self.is_exact_in_a_block

    @property
    def is_exact_in_a_block(self) -> bool:
        """Whether it is a constant vector, and the quantizer meets its values."""
        is_met = nominal_qp(self.parameter, self.options) == self._exact_qp
        return is_met and not self.options.lambda_scale

    @property
    def _exact_qp(self) -> int | None:
        """The qp at which the quantizer meets all values of a constant vector; None: of another
        one. The trellis, which starts with even integers, stays with multiples of four."""
        step_qp = self.survey.step_qp
        if step_qp is None or not self.survey.is_constant:
            return None
        return step_qp - (2 << self.options.qp_density) if self.options.dq else step_qp

    def without_error(self) -> TensorPlan:
        """Return the plan with a qp at which a constant vector comes back exactly in a block, if it
        is one and its own qp is not coarser than its step."""
        qp = self._exact_qp if self.is_on_step else None
        if qp is None or qp < self.options.qp_range[0]:
            return self
        met = replace(self, options=with_qp(self.parameter, self.options, qp))
        return met if met.is_exact_in_a_block else self


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """One data unit.

    Attributes:
        tensors: by role; a weight alone is a unit of the usual kind.
        factored: name and shape of the dense weight whose factors the tensors G and H are.
        node_ids: identities of its tensors, by name; the first edition has none.
        series: the earlier streams, as far as they concern its tensors.
    """

    tensors: Mapping[str, TensorPlan]
    factored: tuple[str, tuple[int, ...]] | None = None
    node_ids: Mapping[str, NodeId] = field(default_factory=dict)
    series: Series = field(default_factory=Series)

    @property
    def elements(self) -> int:
        """Number of the tensors' elements."""
        return sum(tensor.parameter.size for tensor in self.tensors.values())

    @property
    def coded_names(self) -> list[str]:
        """Names of the tensors that the unit holds, and of their parts."""
        return [name for tensor in self.tensors.values() for name in tensor.coded_names]

    def loaded(self) -> UnitPlan:
        """Return the plan with the values of its tensors in memory."""
        with self.series.in_one_pass(self.coded_names):
            tensors = {
                role: replace(tensor, parameter=tensor.parameter.loaded())
                for role, tensor in self.tensors.items()
            }
            return replace(self, tensors=tensors, series=self.series.loaded(self.coded_names))


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """A whole stream.

    Attributes:
        context: its profile and its parameter set.
        map_text: the model map; empty if that says nothing.
        units: its data units, in order.
    """

    context: Context
    map_text: str
    units: list[UnitPlan]


def stream_context(options: EncodeOptions, series: Series) -> Context:
    """Return the profile and the parameter set of a stream behind those of a series.

    Raises:
        InvalidOptions: the profile has no updates.
    """
    mps = ModelParameterSet(
        mps_qp_density=options.qp_density,
        mps_parent_signalling_enabled_flag=int(series.depth > 0),
    )
    return Context(stream_profile(options, series), mps)


def plan_stream(
    survey: ModelSurvey,
    options: EncodeOptions,
    series: Series,
    choices: Mapping[str, CodingChoice],
) -> StreamPlan:
    """Return the plan of a stream.

    Args:
        survey: of the model, which was made with the same options but for qp and profile.
        options: of the encoder.
        series: the earlier streams; without any, the stream is no update.
        choices: of tensors that are coded otherwise than their options say, by name.

    Raises:
        InvalidModel: the model map is too long.
        InvalidOptions: the profile has no updates.
    """
    context = stream_context(options, series)
    tensors = _tensors(survey, options, choices)
    exact = {name: tensor.exact for name, tensor in tensors.items() if tensor.exact is not None}
    model_map = with_representations(survey.model_map, survey.coded, exact)
    # In the second edition a unit has one identity, for all of its tensors: an update could
    # refer to the block as a whole alone.
    is_grouped = options.group and context.profile == 0
    grouping = ungrouped(survey.coded)
    if is_grouped:
        grouping = _grouped(survey, tensors, model_map, context)
    text = _map_text(replace(model_map, order=grouping.order))
    units = _units(survey, tensors, grouping)
    if context.profile == 1:  # whose units have identities, so that updates can refer to them
        names = chain.from_iterable(tensor.coded_names for tensor in tensors.values())
        node_ids = series.node_ids(list(names))
        units = [_identified(unit, node_ids, series) for unit in units]
    return StreamPlan(context, text, units)


def _tensors(
    survey: ModelSurvey, options: EncodeOptions, choices: Mapping[str, CodingChoice]
) -> dict[str, TensorPlan]:
    """Return the plans of the coded tensors by name, in order."""
    factors = {name for weight in survey.factored.values() for name in weight.entry.factors}
    exact = {}
    for name, known in survey.tensors.items():
        chosen = choices[name].exact if name in choices else None
        representation = chosen if known.is_quantized else known.exact
        if representation is not None:
            exact[name] = representation
    reserved = chain.from_iterable(weight.names for weight in survey.factored.values())
    exact = name_parts(exact, [*survey.names, *reserved])
    tensors = {}
    for parameter in survey.coded:
        name = parameter.name
        own = options.for_tensor(name)
        qp = choices[name].qp if name in choices else None
        if qp is not None:
            own = with_qp(parameter, own, qp)
        plan = TensorPlan(parameter, own, survey.tensors[name], exact.get(name), name in factors)
        tensors[name] = plan.without_error()
    return tensors


def stream_profile(options: EncodeOptions, series: Series) -> int:
    """Return the profile of a stream behind those of a series.

    Raises:
        InvalidOptions: the profile has no updates.
    """
    if options.profile == 0 and series.depth:
        raise InvalidOptions("profile", "updates with parents need profile 1")
    if options.profile != "auto":
        return options.profile
    tools = [options.row_skipping is True]
    tools += [values.get("row_skipping") is True for _, values in options.overrides]
    return int(any(tools) or series.depth > 0)


def _grouped(
    survey: ModelSurvey, tensors: Mapping[str, TensorPlan], model_map: ModelMap, context: Context
) -> Grouping:
    search = ToolSearch(context)

    def may_join(weight: Parameter, vector: Parameter) -> bool:
        return _may_join(tensors[weight.name], tensors[vector.name], search)

    def map_bytes(order: TensorOrder) -> int:
        return len(_map_text(replace(model_map, order=order)).encode())

    # Parts of tensors stand before them, whatever their names; so do the factors of a block.
    any_block = any(weight.is_block for weight in survey.factored.values())
    by_name = not model_map.owners and not any_block
    return group_layers(survey.coded, may_join, map_bytes, by_name=by_name)


def _may_join(weight: TensorPlan, vector: TensorPlan, search: ToolSearch) -> bool:
    """Whether a weight and a vector can be in one block, whose header says some things once; what
    is on a step is smaller in a unit by itself."""
    first, second = weight.options, vector.options
    return (
        weight.is_quantized
        and vector.is_quantized
        and weight.parameter.dtype == vector.parameter.dtype
        and (first.dq, first.unary_length) == (second.dq, second.unary_length)
        and not weight.is_on_step
        and not vector.is_on_step
        and not _needs_codebook(vector, search)
    )


def _needs_codebook(vector: TensorPlan, search: ToolSearch) -> bool:
    """Whether a codebook, which the vectors of a block do not have, saves more than a block."""
    options, parameter = vector.options, vector.parameter
    if options.dq or not options.codebook:
        return False
    quantized = quantize_tensor(parameter, options, vector.survey.largest, profile=0)
    record = DataUnit(
        PayloadType.FLOAT, [parameter.name], tensor_dimensions=list(parameter.shape) or [1]
    )
    with_codebook, without = (
        len(search.smallest(record, tools, quantized.levels, quantized.qp))
        for tools in (options, replace(options, codebook=False))
    )
    return with_codebook + USUALLY_SAVED_BYTES < without


def _map_text(model_map: ModelMap) -> str:
    """Return the map's text; empty if it says nothing."""
    text = model_map.to_text() if model_map else ""
    limit = DecodeLimits().max_topology_bytes
    if len(text.encode()) > limit:
        raise InvalidModel("model map", f"longer than {limit} bytes")
    return text


def _units(
    survey: ModelSurvey, tensors: Mapping[str, TensorPlan], grouping: Grouping
) -> list[UnitPlan]:
    """Return the units of a grouping, with the two factors of each DC block in one."""
    units: dict[str, UnitPlan] = {}  # by the name of the first tensor
    for group in grouping.groups:
        first = next(iter(group.values()))
        units[first.name] = UnitPlan({role: tensors[p.name] for role, p in group.items()})
    for name, weight in survey.factored.items():
        if weight.is_block:
            left, right = (factor.name for factor in weight.new_factors)
            del units[right]
            roles = {"G": tensors[left], "H": tensors[right]}
            units[left] = UnitPlan(roles, (name, weight.entry.shape))
    return list(units.values())


def _identified(unit: UnitPlan, node_ids: Mapping[str, NodeId], series: Series) -> UnitPlan:
    """Return a unit with what it needs of the identities and the earlier streams of all tensors,
    which are as large as the model."""
    names = unit.coded_names
    return replace(
        unit, node_ids={name: node_ids[name] for name in names}, series=series.part(names)
    )
