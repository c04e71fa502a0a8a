"""Which layers of a model may share a factor, told from names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..options.decomposition import JointScheme
from .algorithms.joint import JOINT_FITTINGS

_BESIDE_BLOCKS = re.compile(r"downsample|shortcut|proj_?conv|skip", re.IGNORECASE)


Members = dict[tuple[str, tuple[int, ...]], list[str]]
"""Names of weights by their stage and shape."""


def joint_groups(
    shapes: Mapping[str, Sequence[int]], scheme: JointScheme
) -> tuple[tuple[str, ...], ...]:
    """Return the groups of a model's repeated layers: names of two and more weights, in order.

    A group is the weights of equal shape of one stage. The stage is the part of a name before its
    first whole number (`layer2` of `layer2.1.conv1.weight`, `encoder.layer` of
    `encoder.layer.0.output.dense.weight`) or, without a number, before the last two parts
    (`stack2` of `stack2.conv1.weight`). A layer with half as many input channels, as a stage's
    first often is, joins the group of its stage that it fits in all else, where the scheme mixes
    depths.

    Left alone are weights of a stage with no other member (classifiers), depthwise convolutions,
    shortcuts, and the first of several stages that have groups.

    Args:
        shapes: of the model's weights but the first, by name, in order; those of fewer than two or
            more than four dimensions are passed over.
        scheme: as of `joint`.
    """
    weights = {name: tuple(shape) for name, shape in shapes.items() if 2 <= len(shape) <= 4}
    members: Members = {}
    for name, shape in weights.items():
        if not _BESIDE_BLOCKS.search(name) and not (shape[1] == 1 and len(shape) > 2):
            members.setdefault((_stage(name), shape), []).append(name)
    repeated = {key for key, names in members.items() if len(names) > 1}
    if JOINT_FITTINGS[scheme].mixes_depths:
        _join_halves(members, repeated)
    stages = list(dict.fromkeys(stage for stage, shape in members if (stage, shape) in repeated))
    used = stages[1:] or stages
    return tuple(
        tuple(name for name in weights if name in names)
        for (stage, shape), names in members.items()
        if (stage, shape) in repeated and stage in used
    )


def _join_halves(members: Members, repeated: set[tuple[str, tuple[int, ...]]]) -> None:
    """Move single layers of half the input depth to the group of their stage."""
    for stage, (outputs, inputs, *taps) in sorted(repeated):
        half = stage, (outputs, inputs // 2, *taps)
        if inputs % 2 == 0 and half in members and half not in repeated:
            members[stage, (outputs, inputs, *taps)] += members.pop(half)


def _stage(name: str) -> str:
    """Return the part of a weight's name that the layers of its stage have in common."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0]] if numbers else parts[:-2])
