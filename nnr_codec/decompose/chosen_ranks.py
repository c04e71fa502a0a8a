"""Ranks of all weights that get a form of their own, from what the options ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..decomposition_options import DecompositionOptions
from ..errors import InvalidModel, InvalidOptions
from ..factorization.forms import LowRank
from ..options import EncodeOptions
from .algorithms import Task, values_of
from .allocation import ErrorCurve, allocate, estimated_curve
from .kernel import damped
from .ranks import (
    Ranks,
    best_ranks,
    energy_ranks,
    rank_of_fraction,
    resolved_ranks,
    vbmf_ranks,
)

NO_FEWER = "would not have fewer parameters"

_RATIO_STEPS = 50  # halvings of the interval that holds the common fraction


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
            if any(glob == name for glob, _ in options.overrides):
                raise
            skipped[name] = error.reason
    found.update(_by_ratio(by_ratio, options.decomposition, everything, skipped))
    chosen = []
    for task in tasks:
        ranks = found.get(task.weight.name)
        if ranks is None or task.form.parameters(task.weight.shape, ranks) >= _dense(task):
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
    assert options.rank is not None  # one of them is given, as DecompositionOptions checks
    return resolved_ranks(task.form, values_of(task.weight), options.rank, name)


def _ranks_of_fraction(task: Task, fraction: float) -> Ranks:
    weight = task.weight
    if len(task.form.max_ranks(weight.shape)) > 1:
        return best_ranks(task.form, values_of(weight), fraction, weight.name)
    return (rank_of_fraction(task.form, weight.shape, fraction, weight.name),)


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
    skipped: dict[str, str],
) -> Mapping[str, Ranks | None]:
    """Return the ranks with which the whole model has the ratio asked for."""
    curves: dict[str, ErrorCurve] = {}
    for task in tasks:
        try:
            curves[task.weight.name] = estimated_curve(task.form, _weighted(task), task.weight.name)
        except InvalidModel as error:
            skipped[task.weight.name] = error.reason
    usable = [task for task in tasks if task.weight.name in curves]
    ratio = options.compression_ratio
    if not usable or ratio is None:
        return {}
    others = everything - sum(map(_dense, usable))
    if options.method == "ce1":
        return _common_fraction(usable, everything / ratio - others, ratio)
    return allocate(curves, ratio, others)


def _common_fraction(
    tasks: Sequence[Task], budget: float, ratio: float
) -> Mapping[str, Ranks | None]:
    """Return ranks that keep the same fraction of every weight, the largest that fits.

    As CE-1 has it: LR r = ⌊m·n / (c·(m + n))⌋, CP R = ⌊T·S·d1·d2 / (c·(T + S + d1 + d2))⌋.

    Args:
        budget: parameters that the weights may have together.
        ratio: for the error.
    """

    def ranks_at(fraction: float) -> dict[str, Ranks]:
        return {task.weight.name: _ranks_of_fraction(task, fraction) for task in tasks}

    def parameters(ranks: Mapping[str, Ranks]) -> int:
        counts = (
            min(t.form.parameters(t.weight.shape, ranks[t.weight.name]), _dense(t)) for t in tasks
        )
        return sum(counts)

    low, high = 0.0, 1.0
    least = ranks_at(1e-9)
    if parameters(least) > budget:
        raise InvalidOptions("compression_ratio", f"{ratio}: more than ranks of 1 give")
    best = least
    for _ in range(_RATIO_STEPS):
        middle = (low + high) / 2
        ranks = ranks_at(middle)
        if parameters(ranks) <= budget:
            low, best = middle, ranks
        else:
            high = middle
    return best


def _dense(task: Task) -> int:
    return task.weight.parameter.size
