"""Groups of layers that share a factor, with the ranks that the options ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..decomposition_options import DecompositionOptions
from ..errors import InvalidModel, InvalidOptions
from .algorithms import values_of
from .chosen_ranks import NO_FEWER
from .decomposition import Decomposition
from .joint import joint, joint_parameters, joint_rank
from .joint_groups import JointGroup, joint_groups
from .layer_kinds import LayerWeight

ALONE = "shares its shape with no other layer of its stage"

_RATIO_STEPS = 50  # halvings of the interval that holds the common fraction


def select_joint(
    weights: Sequence[LayerWeight],
    options: DecompositionOptions,
    everything: int,
    found: Decomposition,
    progress: Callable[[str], object] | None = None,
) -> None:
    """Decompose the groups of a model's repeated layers, and note why other layers stay dense.

    Args:
        weights: of the layers that may share a factor, in the order of the model.
        options: rank (int or fraction), energy or ratio, and the scheme.
        everything: parameters of the whole model.
        found: what is added to.
        progress: called with the name of each weight that is done.

    Raises:
        InvalidOptions: the ratio is out of reach, or ranks by VBMF are asked for.
    """
    by_name = {weight.name: weight for weight in weights}
    shapes = {name: weight.shape for name, weight in by_name.items()}
    groups = joint_groups(shapes, options.joint_scheme) if shapes else ()
    ranks = _ranks(groups, by_name, options, everything)
    for group, rank in zip(groups, ranks, strict=True):
        members = [by_name[name] for name in group.names]
        dense = sum(weight.parameter.size for weight in members)
        if _parameters(members, rank, options) >= dense:
            found.skipped.update(dict.fromkeys(group.names, NO_FEWER))
            continue
        try:
            values = {weight.name: values_of(weight) for weight in members}
            found.factorizations.update(joint(values, rank, options.joint_scheme))
        except InvalidModel as error:
            found.skipped.update(dict.fromkeys(group.names, error.reason))
        if progress is not None:
            for name in group.names:
                progress(name)
    for name in by_name:
        if name not in found.factorizations:
            found.skipped.setdefault(name, ALONE)


def _parameters(members: Sequence[LayerWeight], rank: int, options: DecompositionOptions) -> int:
    return joint_parameters([weight.shape for weight in members], rank, options.joint_scheme)


def _ranks(
    groups: Sequence[JointGroup],
    weights: dict[str, LayerWeight],
    options: DecompositionOptions,
    everything: int,
) -> list[int]:
    members = [[weights[name] for name in group.names] for group in groups]
    if not members:
        return []
    if options.compression_ratio is not None:
        return _by_ratio(members, options, everything)
    if options.energy is not None:
        return [_energy_rank(group, options) for group in members]
    rank = options.rank
    if rank == "vbmf" or rank is None:
        raise InvalidOptions("rank", "VBMF has no ranks of groups")
    most = [joint_rank([w.shape for w in group], 1e9, options.joint_scheme) for group in members]
    if isinstance(rank, int):
        return [min(rank, highest) for highest in most]
    return [joint_rank([w.shape for w in group], rank, options.joint_scheme) for group in members]


def _by_ratio(
    groups: Sequence[Sequence[LayerWeight]], options: DecompositionOptions, everything: int
) -> list[int]:
    """Return ranks that keep the same fraction of every group, the largest that gives the ratio."""
    ratio = options.compression_ratio
    assert ratio is not None  # as the caller has seen
    dense = [sum(weight.parameter.size for weight in group) for group in groups]
    budget = everything / ratio - (everything - sum(dense))

    def ranks_at(fraction: float) -> list[int]:
        scheme = options.joint_scheme
        return [joint_rank([w.shape for w in group], fraction, scheme) for group in groups]

    def parameters(ranks: Sequence[int]) -> int:
        counts = zip(groups, ranks, dense, strict=True)
        return sum(min(_parameters(group, rank, options), most) for group, rank, most in counts)

    low, high, best = 0.0, 1.0, ranks_at(1e-9)
    if parameters(best) > budget:
        reason = f"{ratio}: the layers that share factors take more, even with ranks of 1"
        raise InvalidOptions("compression_ratio", reason)
    for _ in range(_RATIO_STEPS):
        middle = (low + high) / 2
        ranks = ranks_at(middle)
        if parameters(ranks) <= budget:
            low, best = middle, ranks
        else:
            high = middle
    return best


def _energy_rank(group: Sequence[LayerWeight], options: DecompositionOptions) -> int:
    """Return the least rank at which a group keeps the energy, all its members together."""
    assert options.energy is not None  # as the caller has seen
    values = {weight.name: values_of(weight) for weight in group}
    energy = sum(float(np.vdot(value, value)) for value in values.values())
    allowed = (1 - options.energy) * energy
    low, high = 1, joint_rank([w.shape for w in group], 1e9, options.joint_scheme)
    while low < high:
        middle = (low + high) // 2
        made = joint(values, middle, options.joint_scheme)
        left = sum(float(np.sum((values[n] - made[n].to_dense()) ** 2)) for n in values)
        low, high = (low, middle) if left <= allowed else (middle + 1, high)
    return low
