"""Ranks of all weights that get a form of their own, from what the options ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt

from ..decomposition_options import DecompositionOptions
from ..errors import InvalidModel, InvalidOptions
from ..factorization.forms import LowRank
from ..options import EncodeOptions
from .algorithms import Task, values_of
from .allocation import allocate, largest_fraction, loss_curve
from .kernel import checked_weight, damped
from .ranks import Ranks, energy_ranks, rank_of_fraction, resolved_ranks, vbmf_ranks

NO_FEWER = "would not have fewer parameters"


def ranks_of_model(
    tasks: Sequence[Task], options: EncodeOptions, everything: int, skipped: dict[str, str]
) -> list[Task]:
    """Return the tasks with their ranks; note in `skipped` why others have none.

    Args:
        tasks: weights and forms.
        options: of the encoder.
        everything: parameters of the whole model.
        skipped: reasons by name, added to.

    Raises:
        InvalidOptions: the ratio is out of reach; or a rank is impossible, of a weight that an
            override names exactly.
    """
    found: dict[str, Ranks | None] = {}
    by_ratio: list[Task] = []
    for task in tasks:
        name = task.weight.name
        own = options.for_tensor(name).decomposition
        if own.compression_ratio is not None:
            by_ratio.append(task)
            continue
        try:
            found[name] = _ranks(task, own)
        except InvalidModel as error:
            skipped[name] = error.reason
        except InvalidOptions as error:
            if options.names_exactly(name):
                raise
            skipped[name] = error.reason
    saved = sum(_dense(task) - _parameters(task, found.get(task.weight.name)) for task in tasks)
    found.update(_by_ratio(by_ratio, options.decomposition, everything, saved, skipped))
    chosen = []
    for task in tasks:
        ranks = found.get(task.weight.name)
        if ranks is None or _parameters(task, ranks) == _dense(task):
            skipped.setdefault(task.weight.name, NO_FEWER)
        else:
            chosen.append(replace(task, ranks=ranks))
    return chosen


def _ranks(task: Task, options: DecompositionOptions) -> Ranks:
    name = task.weight.name
    if options.energy is not None:
        return energy_ranks(task.form, _weighted(task), options.energy, name)
    if options.rank == "vbmf":
        return vbmf_ranks(task.form, values_of(task.weight), name)
    rank = cast("int | float", options.rank)  # one is given, as DecompositionOptions checks
    return resolved_ranks(task.form, values_of(task.weight), rank, name)


def _weighted(task: Task) -> npt.NDArray[np.float64] | npt.NDArray[np.float32]:
    """Return a weight whose spectrum is that of the layer's output, where that is known.

    For low rank it is W·L with L·Lᵀ the moment; other forms have no single spectrum.
    """
    values = values_of(task.weight)
    if task.moment is None or task.form is not LowRank:
        return values
    factor = np.linalg.cholesky(damped(task.moment))
    matrix = values.reshape(len(values), -1).astype(np.float64) @ factor
    return np.asarray(matrix.reshape(values.shape))


def _by_ratio(
    tasks: Sequence[Task],
    options: DecompositionOptions,
    everything: int,
    saved: int,
    skipped: dict[str, str],
) -> Mapping[str, Ranks | None]:
    """Return the ranks with which the whole model has the ratio asked for.

    Args:
        tasks: weights that have neither a rank nor an energy of their own.
        options: of the model.
        everything: parameters of the whole model, all dense.
        saved: of them, by weights that do.
        skipped: reasons by name, added to.
    """
    if not tasks or options.compression_ratio is None:
        return {}
    ratio = options.compression_ratio
    # CE-1 gives all layers the same ratio, and other methods the same slope of the error.
    if options.method == "ce1" and all(len(t.form.max_ranks(t.weight.shape)) == 1 for t in tasks):
        usable = list(_usable(tasks, skipped))
        budget = everything / ratio - (everything - saved - sum(map(_dense, usable)))
        return _common_fraction(usable, budget, ratio)
    curves = {}
    for task in tasks:
        name = task.weight.name
        try:
            curves[name] = loss_curve(task.form, _weighted(task), name)
        except InvalidModel as error:
            skipped[name] = error.reason
    others = everything - saved - sum(curve.dense for curve in curves.values())
    # Of what is left, as `allocate` has it: at least what the others have saved is reached.
    return allocate(curves, max(ratio * (1 - saved / everything), 1.0), others)


def _usable(tasks: Sequence[Task], skipped: dict[str, str]) -> Iterator[Task]:
    """Yield the tasks whose weights can be decomposed; note why others cannot."""
    for task in tasks:
        try:
            checked_weight(values_of(task.weight), task.form, task.weight.name)
        except InvalidModel as error:
            skipped[task.weight.name] = error.reason
        else:
            yield task


def _common_fraction(
    tasks: Sequence[Task], budget: float, ratio: float
) -> Mapping[str, Ranks | None]:
    """Return ranks that keep the same fraction of every weight, the largest that fits.

    As CE-1 has it: LR r = ⌊m·n / (c·(m + n))⌋, CP R = ⌊T·S·d1·d2 / (c·(T + S + d1 + d2))⌋.

    Args:
        tasks: weights, and forms of one rank.
        budget: parameters that the weights may have together.
        ratio: for the error.
    """

    def ranks_at(fraction: float) -> dict[str, Ranks]:
        return {t.weight.name: (rank_of_fraction(t.form, t.weight.shape, fraction),) for t in tasks}

    def parameters(fraction: float) -> int:
        ranks = ranks_at(fraction)
        return sum(_parameters(task, ranks[task.weight.name]) for task in tasks)

    fraction = largest_fraction(parameters, budget)
    if fraction is None:
        raise InvalidOptions("compression_ratio", f"{ratio}: more than ranks of 1 give")
    return ranks_at(fraction)


def _parameters(task: Task, ranks: Ranks | None) -> int:
    """Return what a weight has, which stays dense where factors would not have fewer."""
    if ranks is None:
        return _dense(task)
    return min(task.form.parameters(task.weight.shape, ranks), _dense(task))


def _dense(task: Task) -> int:
    return task.weight.parameter.size
