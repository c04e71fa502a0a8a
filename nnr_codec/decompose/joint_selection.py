"""Groups of layers that share a factor, with the ranks that the options ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from ..errors import InvalidOptions
from ..factorization.forms import JointRight
from ..model import Array
from ..options import DecompositionOptions, EncodeOptions
from .algorithms.joint import joint, joint_parameters, joint_rank
from .decomposition import Decomposition
from .fitting import usable, values_of
from .joint_groups import joint_groups
from .layer_kinds import LayerWeight
from .ranks.allocation import largest_fraction
from .ranks.chosen_ranks import NO_FEWER

ALONE = "is in no group of equal layers that share a factor"

_SHARING = ("linear", "pointwise", "convolution")  # kinds of layers that the joint forms replace

_ALL = 1e9  # a fraction of the parameters that every rank is below


@dataclass(frozen=True)
class _Group:
    """Layers that share a factor, and the options that all of them have."""

    members: tuple[LayerWeight, ...]
    options: DecompositionOptions

    @property
    def names(self) -> list[str]:
        return [weight.name for weight in self.members]

    @property
    def dense(self) -> int:
        """Parameters of the weights as they are."""
        return sum(weight.parameter.size for weight in self.members)

    def parameters(self, rank: int) -> int:
        return joint_parameters([w.shape for w in self.members], rank, self.options.joint_scheme)

    def rank_of(self, fraction: float) -> int:
        return joint_rank([w.shape for w in self.members], fraction, self.options.joint_scheme)


def select_joint(
    weights: Sequence[LayerWeight],
    options: EncodeOptions,
    model_parameters: int,
    decomposition: Decomposition,
    progress: Callable[[str], object] | None = None,
) -> None:
    """Decompose the groups of a model's repeated layers, and note why other layers stay dense.

    Layers whose options differ share nothing.

    Args:
        weights: of the layers that may share a factor, in the order of the model.
        options: of the encoder.
        model_parameters: parameters of the whole model, all dense.
        decomposition: what is added to; what other weights save counts for the ratio, too.
        progress: called with the name of each weight that is done.

    Raises:
        InvalidOptions: the ratio is out of reach, perhaps as there is no group.
    """
    names = usable(((weight, JointRight) for weight in weights), decomposition.skipped)
    groups = list(_groups([weight for weight in weights if weight.name in names], options))
    saved, ratio = decomposition.saved, options.decomposition.compression_ratio
    nothing_shared = options.decomposition.method == "joint" and not groups
    if nothing_shared and ratio is not None and model_parameters - saved > model_parameters / ratio:
        reason = "there is no group of repeated layers that could share a factor"
        raise InvalidOptions("compression_ratio", f"{ratio}: {reason}")
    fraction = _fraction_of_ratio(groups, model_parameters, saved)
    for group in groups:
        _decompose(group, fraction, decomposition)
        if progress is not None:
            for name in group.names:
                progress(name)
    for weight in weights:
        if weight.name not in decomposition.factorizations:
            decomposition.skipped.setdefault(weight.name, ALONE)


def _groups(weights: Sequence[LayerWeight], options: EncodeOptions) -> Iterator[_Group]:
    by_name = {weight.name: weight for weight in weights}
    may_share = [w for w in weights if w.kind in _SHARING and not w.is_first]
    shapes = {weight.name: weight.shape for weight in may_share}
    scheme = options.decomposition.joint_scheme
    for names in joint_groups(shapes, scheme):
        apart: dict[DecompositionOptions, list[LayerWeight]] = {}
        for name in names:
            member_options = options.for_tensor(name).decomposition
            apart.setdefault(member_options, []).append(by_name[name])
        yield from (
            _Group(tuple(w), member_options) for member_options, w in apart.items() if len(w) > 1
        )


def _decompose(group: _Group, fraction_of_ratio: float, decomposition: Decomposition) -> None:
    """Put factors in place of a group's weights, if that takes fewer parameters."""
    values = {weight.name: values_of(weight) for weight in group.members}
    if group.options.energy is not None:
        rank = _energy_rank(group, values, group.options.energy)
    elif isinstance(group.options.rank, int):
        rank = min(group.options.rank, group.rank_of(_ALL))
    else:
        fraction = cast("float | None", group.options.rank)  # as DecompositionOptions checks
        rank = group.rank_of(fraction_of_ratio if fraction is None else fraction)
    if group.parameters(rank) >= group.dense:
        decomposition.skipped.update(dict.fromkeys(group.names, NO_FEWER))
    else:
        decomposition.factorizations.update(joint(values, rank, group.options.joint_scheme))


def _fraction_of_ratio(groups: Sequence[_Group], model_parameters: int, saved: int) -> float:
    """Return the fraction to keep of every group, the largest that gives the model's ratio.

    Args:
        groups: of which some may have a rank or an energy instead: they are counted as dense.
        model_parameters: parameters of the model, all dense.
        saved: of them, by weights that are in no group.
    """
    by_ratio = [group for group in groups if group.options.compression_ratio is not None]
    if not by_ratio:
        return 1.0
    # The model's: no layer has another.
    ratio = cast("float", by_ratio[0].options.compression_ratio)
    others = model_parameters - saved - sum(group.dense for group in by_ratio)

    def parameters(fraction: float) -> int:
        return sum(min(g.parameters(g.rank_of(fraction)), g.dense) for g in by_ratio)

    return largest_fraction(parameters, ratio, model_parameters, others)


def _energy_rank(group: _Group, values: Mapping[str, Array], energy: float) -> int:
    """Return the least rank at which a group keeps the energy, all its members together."""
    whole = sum(float(np.vdot(value, value)) for value in values.values())
    allowed = (1 - energy) * whole
    low, high = 1, group.rank_of(_ALL)
    while low < high:
        middle = (low + high) // 2
        made = joint(values, middle, group.options.joint_scheme)
        left = sum(float(np.sum((values[n] - made[n].to_dense()) ** 2)) for n in values)
        low, high = (low, middle) if left <= allowed else (middle + 1, high)
    return low
