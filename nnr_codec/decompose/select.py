"""Which weights of a model are decomposed, into which form, and with which ranks."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..calibration.moments import MAX_BYTES, Calibration
from ..errors import InvalidOptions
from ..factorization.forms import FactoredWeight
from ..model import Float64, Parameter
from ..options import DecompositionOptions, EncodeOptions, matches_tensor
from ..support.blas_threads import on_one_blas_thread
from ..support.ordered_calls import ordered_results
from ..support.shared_function import call_portably
from .auto_size import LARGER, SizeTask, dense_qps, smallest
from .auto_work import MORE_WORK, WorkBench, least_work
from .decomposition import Decomposition
from .fitting import decomposed
from .forms import form_of_method, forms_of_layer, has_first_layer
from .joint_selection import ALONE, select_joint
from .layer_kinds import LayerWeight, weights_of_model
from .ranks.chosen_ranks import NO_FEWER, Candidate, chosen_tasks

if TYPE_CHECKING:
    import torch

Progress = Callable[[str], object]

_PENDING = 16
"""Weights decomposed ahead of the one that is waited for, with an executor."""

_NOT_WORTH_IT = (NO_FEWER, LARGER, MORE_WORK, ALONE)
"""Why weights stay dense that could be decomposed."""

_ROUNDING = 1e-9  # of a ratio of whole numbers

_BYTES_PER_ELEMENT = 64
"""What decomposing holds of an element, about: float64 copies, products, residuals."""


@on_one_blas_thread
def decompose_model(
    model: Mapping[str, Parameter],
    options: EncodeOptions,
    *,
    module: torch.nn.Module | None = None,
    inputs: Any = None,
    calibration: Calibration | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Decomposition:
    """Decompose the weights of a model as `options.decomposition` and the overrides say.

    The first layer, depthwise convolutions, and weights that would not have fewer parameters stay
    dense, and so does what is not quantized. An override that names a method for a weight
    (`decompose`) holds for a first layer, too.

    Args:
        model: tensors by name.
        options: of the encoder.
        module: that the weights belong to, with the model's tensors; without one their shapes tell
            what they are.
        inputs: a batch of the module's inputs, for the objectives "macs" and "latency".
        calibration: second moments of the layers' inputs: then it is the error of the outputs
            that forms and ranks are chosen by, and that all but joint forms minimize; and of the
            network's result, by which the objective "size" chooses.
        executor: decomposes weights side by side.
        progress: called with the name of a weight after each of its steps: the choice of its ranks,
            and its decomposition.

    Raises:
        InvalidModel: a weight does not fit the module.
        InvalidOptions: a ratio is not reached, an objective lacks the module and its inputs, or
            an override that names a weight exactly asks for what is impossible: a weight that
            cannot be decomposed, or a rank that it cannot have.
    """
    decomposition = Decomposition()
    model_parameters = sum(p.size for p in model.values() if p.tied_to is None)
    weights = weights_of_model(model, module)
    _check_named(model, {weight.name for weight in weights}, options)
    eligible = _eligible(weights, options, decomposition)
    joint = [weight for weight, each in eligible if each.method == "joint"]
    auto = [weight for weight, each in eligible if _has_objective(each)]
    alone = [
        (w, each) for w, each in eligible if each.method != "joint" and not _has_objective(each)
    ]
    selection = _Selection(options, calibration, executor, progress, decomposition)
    selection.decompose_alone(alone, model_parameters)
    select_joint(joint, options, model_parameters, decomposition, progress)
    if options.decomposition.objective == "size":
        selection.decompose_for_size(auto, model)
    else:
        selection.decompose_for_work(auto, module, inputs)
    for name, reason in decomposition.skipped.items():
        if reason not in _NOT_WORTH_IT and options.names_exactly(name):
            raise InvalidOptions(f"{name}: decompose", reason)
    _check_ratio(options.decomposition, model_parameters, decomposition)
    decomposition.sort(list(model))
    return decomposition


def _check_named(
    model: Mapping[str, Parameter], weights: Container[str], options: EncodeOptions
) -> None:
    """Check that the tensors whose names overrides give are weights, if they have a method."""
    for name, values in options.overrides:
        if values.get("decompose", "none") == "none" or name not in model or name in weights:
            continue
        tied_to = model[name].tied_to
        reason = "is no weight of a layer" if tied_to is None else f"is tied to {tied_to!r}"
        raise InvalidOptions(f"{name}: decompose", reason)


def _check_ratio(
    weight_options: DecompositionOptions, model_parameters: int, decomposition: Decomposition
) -> None:
    """Check that a model whose weights all stay dense, or have set ranks, has the ratio.

    Where the ratio chooses ranks, these have it, and other errors have told what is out of reach.
    """
    ratio, after = weight_options.compression_ratio, model_parameters - decomposition.saved
    if weight_options.method == "none" or ratio is None:
        return
    if after * ratio > model_parameters * (1 + _ROUNDING):
        reason = "nothing is decomposed"
        if decomposition.factorizations:
            reason = f"the ranks set for single weights give {model_parameters / after:.4g}"
        raise InvalidOptions("compression_ratio", f"{ratio}: {reason}")


def _eligible(
    weights: Iterable[LayerWeight], options: EncodeOptions, decomposition: Decomposition
) -> list[tuple[LayerWeight, DecompositionOptions]]:
    """Return the weights that may be decomposed, with their options; note why others may not."""
    eligible = []
    for weight in weights:
        weight_options = options.for_tensor(weight.name).decomposition
        if weight_options.method == "none":
            continue
        reason = _obstacle(weight, weight_options, options)
        if reason is None:
            eligible.append((weight, weight_options))
        elif options.names_exactly(weight.name):
            raise InvalidOptions(f"{weight.name}: decompose", reason)
        else:
            decomposition.skipped[weight.name] = reason
    return eligible


def _has_objective(weight_options: DecompositionOptions) -> bool:
    """Whether the objective tells what becomes of a weight, not a ratio of the whole model."""
    return weight_options.method == "auto" and weight_options.compression_ratio is None


def _obstacle(
    weight: LayerWeight, weight_options: DecompositionOptions, options: EncodeOptions
) -> str | None:
    """Return why a weight stays dense, if it does."""
    if not options.quantizes(weight.name):
        return "is not quantized"
    if weight.kind == "depthwise":
        return "is depthwise"
    if weight.kind == "other":
        return "is of a kind of layer that is not decomposed"
    is_named = any(
        "decompose" in values and matches_tensor(weight.name, glob)
        for glob, values in options.overrides
    )
    # Groups of layers leave it out themselves.
    has_rule = weight_options.method == "joint" or (
        weight_options.energy is not None and has_first_layer(weight_options.method)
    )
    if weight.is_first and not is_named and not has_rule:
        return "is of the first layer"
    return None


def _forms(weight: LayerWeight, method: str) -> tuple[type[FactoredWeight], ...]:
    return forms_of_layer(weight) if method == "auto" else (form_of_method(weight, method),)


@dataclass(frozen=True)
class _Selection:
    """The steps of :func:`decompose_model`, with what they have in common."""

    options: EncodeOptions
    calibration: Calibration | None
    executor: Executor | None
    progress: Progress | None
    decomposition: Decomposition

    def decompose_alone(
        self, eligible: Sequence[tuple[LayerWeight, DecompositionOptions]], model_parameters: int
    ) -> None:
        """Decompose weights into the form that the method tells, or the ratio, each by itself."""
        candidates = [
            Candidate(weight, _forms(weight, each.method), each, self._moment(weight))
            for weight, each in eligible
        ]
        skipped = self.decomposition.skipped
        chosen = chosen_tasks(candidates, self.options, model_parameters, skipped, self._results)
        for task, made in zip(chosen, self._results(decomposed, chosen), strict=True):
            self.decomposition.add(task.weight.name, made)

    def decompose_for_size(
        self, weights: Sequence[LayerWeight], model: Mapping[str, Parameter]
    ) -> None:
        """Decompose the weights that take fewer bytes so, at the error that they have dense."""
        qps: dict[str, int] = {}
        if weights and self.calibration is not None:
            qps = dense_qps(model, self.options, self.calibration, self.executor)
        self.decomposition.qps = qps
        tasks = [SizeTask(weight, self.options, qps.get(weight.name)) for weight in weights]
        results = self._results(smallest, tasks, self._with_known)
        for task, (made, factor_qps) in zip(tasks, results, strict=True):
            self.decomposition.add(task.weight.name, made, factor_qps)

    def _with_known(self, task: SizeTask) -> SizeTask:
        """Return a task with the values of its weight, and what is known of it."""
        name = task.weight.name
        known = None if self.calibration is None else self.calibration.part(name)
        loaded: SizeTask = _with_values(task)
        return replace(loaded, moment=self._moment(task.weight), calibration=known)

    def decompose_for_work(
        self, weights: Sequence[LayerWeight], module: torch.nn.Module | None, inputs: Any
    ) -> None:
        """Decompose the weights whose layers then have less to do."""
        if not weights:
            return
        bench = WorkBench(self.options.decomposition, module, inputs)
        for weight in weights:
            energy = self.options.for_tensor(weight.name).decomposition.energy
            made = least_work(weight, bench, self._moment(weight), energy)
            self.decomposition.add(weight.name, made)
            self._done(weight)

    def _moment(self, weight: LayerWeight) -> Float64 | None:
        """Return E[x xᵀ] for x in the order of the weight's unfolding, or None if it is not known.

        Of groups it is the mean: they share the first factor. Moments of gradients serve as well
        where there are none of inputs, as of a transposed convolution, whose weight is unfolded in
        another order than these.
        """
        known = self.calibration.tensor(weight.name) if self.calibration else None
        if known is None:
            return None
        if known.inputs is not None and not known.inputs.layout.transposed:
            is_too_wide = 8 * known.inputs.layout.width**2 > MAX_BYTES
            return None if is_too_wide and not known.inputs.is_whole else known.inputs.mean()
        columns = None if known.result is None else known.result.columns
        if columns is None or columns.shape[1] > 1:  # too wide to be known as a whole
            return None
        moment: Float64 = columns[0, 0] if len(columns) == 1 else columns[:, 0].mean(axis=0)
        return moment

    def _results(
        self,
        function: Callable[[Any], Any],
        tasks: Sequence[Any],
        loaded: Callable[[Any], Any] | None = None,
    ) -> Iterator[Any]:
        """Yield what a function makes of each task, and tell of its weight when that is done.

        `loaded`: makes a task whole shortly before its turn; :func:`_with_values` if it is None.
        """
        calls = (
            (_BYTES_PER_ELEMENT * task.weight.parameter.size, partial(loaded or _with_values, task))
            for task in tasks
        )
        results = ordered_results(self.executor, partial(_result, function), calls, _PENDING)
        for task, result in zip(tasks, results, strict=True):
            yield result
            self._done(task.weight)

    def _done(self, weight: LayerWeight) -> None:
        if self.progress is not None:
            self.progress(weight.name)


@on_one_blas_thread
def _result(function: Callable[[Any], Any], task: Any) -> Any:
    """Return what a function makes of a task, in another process perhaps."""
    return call_portably(task.weight.name, function, task)


def _with_values(task: Any) -> Any:
    """Return a task whose weight is in memory, so that another process can have it."""
    read = Parameter.from_array(task.weight.name, task.weight.parameter.read())
    return replace(task, weight=replace(task.weight, parameter=read))
