"""Forms and ranks of all weights that share no factors, from the options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ...errors import InvalidModel, InvalidOptions
from ...factorization.factored_weight import Ranks
from ...model import Float64
from ...options import DecompositionOptions, EncodeOptions
from ..algorithms.kernel import relative_error
from ..fitting import Form, Task, decompose_to, usable, values_of
from ..layer_kinds import LayerWeight
from .allocation import allocate, largest_fraction
from .error_curve import ErrorCurve, error_curve, merged
from .rank_options import (
    energy_ranks,
    rank_of_fraction,
    ranks_of_fraction,
    resolved_ranks,
    vbmf_ranks,
)

NO_FEWER = "would not have fewer parameters"

Results = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Calls a function with each of some candidates or tasks; gives the results in their order."""


@dataclass(frozen=True)
class Candidate:
    """A weight that may be decomposed.

    Attributes:
        weight: which.
        forms: at least one; of several, a compression ratio chooses.
        options: of the weight: its rank, its energy, or the ratio of the model.
        moment: of the layer's unfolded input; None if it is not known.
    """

    weight: LayerWeight
    forms: tuple[Form, ...]
    options: DecompositionOptions
    moment: Float64 | None = None

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def dense(self) -> int:
        """Parameters of the dense weight."""
        return self.weight.parameter.size

    def task(self, ranks: Ranks, form: Form | None = None) -> Task:
        """Return the task of decomposing the weight to ranks, into its first form by default."""
        return Task(self.weight, form or self.forms[0], ranks, self.moment)


def chosen_tasks(
    candidates: Sequence[Candidate],
    options: EncodeOptions,
    model_parameters: int,
    skipped: dict[str, str],
    results: Results = map,
) -> list[Task]:
    """Return the weights to decompose, their forms and ranks; note in `skipped` why not others.

    Args:
        candidates: weights, and the forms that they may get.
        options: of the encoder.
        model_parameters: parameters of the whole model, all dense.
        skipped: reasons by name, added to.
        results: may call its function for several candidates side by side.

    Raises:
        InvalidOptions: the ratio is out of reach; or a rank is impossible, of a weight that an
            override names exactly.
    """
    tasks_by_name: dict[str, Task] = {}
    by_ratio = [c for c in candidates if c.options.compression_ratio is not None]
    others = [c for c in candidates if c.options.compression_ratio is None]
    for candidate, ranks in zip(others, results(_ranks, others), strict=True):
        if isinstance(ranks, tuple):
            tasks_by_name[candidate.name] = candidate.task(ranks)
        elif isinstance(ranks, InvalidOptions) and options.names_exactly(candidate.name):
            raise ranks
        else:
            skipped[candidate.name] = ranks.reason
    saved = sum(
        c.dense - _parameters(tasks_by_name[c.name]) for c in candidates if c.name in tasks_by_name
    )
    chosen = _by_ratio(by_ratio, options.decomposition, model_parameters, saved, skipped, results)
    tasks_by_name.update((task.weight.name, task) for task in chosen)
    tasks = []
    for candidate in candidates:
        task = tasks_by_name.get(candidate.name)
        if task is None or _parameters(task) == candidate.dense:
            skipped.setdefault(candidate.name, NO_FEWER)
        else:
            tasks.append(task)
    return tasks


def _ranks(candidate: Candidate) -> Ranks | InvalidModel | InvalidOptions:
    """Return the ranks by a weight's rank or energy; or what is wrong with these."""
    (form,), name, options = candidate.forms, candidate.name, candidate.options
    values, moment = values_of(candidate.weight), candidate.moment
    try:
        if options.energy is not None:
            return energy_ranks(form, values, options.energy, moment, name)
        if options.rank == "vbmf":
            return vbmf_ranks(form, values, name)
        rank = cast("int | float", options.rank)  # one is given, as DecompositionOptions checks
        return resolved_ranks(form, values, rank, moment, name)
    except (InvalidModel, InvalidOptions) as error:
        return error


def _by_ratio(
    candidates: Sequence[Candidate],
    options: DecompositionOptions,
    model_parameters: int,
    saved: int,
    skipped: dict[str, str],
    results: Results,
) -> list[Task]:
    """Return the tasks with which the whole model has the compression ratio of its options.

    Args as of `chosen_tasks`; `saved` are the parameters that weights with a rank or an energy
    have less.
    """
    if not candidates or options.compression_ratio is None:
        return []
    ratio = options.compression_ratio
    # CE-1 gives all layers the same ratio, and other methods the same slope of the error.
    if options.method == "ce1":
        names = usable(((c.weight, c.forms[0]) for c in candidates), skipped)
        kept = [candidate for candidate in candidates if candidate.name in names]
        others = model_parameters - saved - sum(candidate.dense for candidate in kept)
        return _common_fraction(kept, ratio, model_parameters, others)
    curves: dict[str, ErrorCurve] = {}
    for candidate, curve in zip(candidates, results(_curve, candidates), strict=True):
        if isinstance(curve, str):
            skipped[candidate.name] = curve
        else:
            curves[candidate.name] = curve.of_losses()
    others = model_parameters - saved - sum(curve.dense for curve in curves.values())
    chosen = allocate(curves, ratio, others, saved)
    picked = ((c, chosen.get(c.name)) for c in candidates)
    return [c.task(choice.ranks, choice.form) for c, choice in picked if choice is not None]


def _curve(candidate: Candidate) -> ErrorCurve | str:
    """Return the errors to expect of a candidate's forms; or why it cannot be decomposed.

    What to expect of one form is not as near to what it reaches as of another: where there are
    several, each is corrected by what it reaches at the ratio of the model.
    """
    values, name = values_of(candidate.weight), candidate.name
    try:
        curves = []
        for form in candidate.forms:
            curve = error_curve(form, values, candidate.moment, name)
            choice = curve.best(candidate.dense / (candidate.options.compression_ratio or 1))
            if len(candidate.forms) > 1 and choice is not None and choice.error > 0:
                made = decompose_to(form, values, choice.ranks, candidate.moment, name)
                reached = relative_error(values, made.to_dense(), candidate.moment)
                curve = curve.scaled(reached / choice.error)
            curves.append(curve)
    except InvalidModel as error:
        return error.reason
    return merged(curves)


def _common_fraction(
    candidates: Sequence[Candidate], ratio: float, model_parameters: int, others: int
) -> list[Task]:
    """Return tasks that keep the same fraction of every weight, the largest that fits.

    As CE-1 has it: LR r = ⌊m·n / (c·(m + n))⌋, CP R = ⌊T·S·d1·d2 / (c·(T + S + d1 + d2))⌋. Forms
    of several ranks, which overrides may choose, have those of the least error. `others` are the
    parameters of all but the candidates, each of which has one form.
    """
    curves = {
        c.name: error_curve(c.forms[0], values_of(c.weight), c.moment, c.name)
        for c in candidates
        if len(c.forms[0].max_ranks(c.weight.shape)) > 1
    }

    def ranks_at(candidate: Candidate, fraction: float) -> Ranks:
        form, shape = candidate.forms[0], candidate.weight.shape
        if candidate.name in curves:
            return ranks_of_fraction(curves[candidate.name], form, shape, fraction)
        return (rank_of_fraction(form, shape, fraction),)

    def tasks_at(fraction: float) -> list[Task]:
        return [c.task(ranks_at(c, fraction)) for c in candidates]

    def parameters(fraction: float) -> int:
        return sum(map(_parameters, tasks_at(fraction)))

    return tasks_at(largest_fraction(parameters, ratio, model_parameters, others))


def _parameters(task: Task) -> int:
    """Return what a weight has, which stays dense where factors would not have fewer."""
    dense = task.weight.parameter.size
    return min(task.form.parameters(task.weight.shape, task.ranks), dense)
