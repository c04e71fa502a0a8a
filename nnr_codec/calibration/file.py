"""A calibration in a file, so that encoding again needs neither the samples nor torch.

An `.npz` (or safetensors) file with the blocks of each weight under its name, float64, and what
else belongs to them as JSON in the text entry `nnr_calibration`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from ..checkpoints import open_checkpoint, save_checkpoint
from ..errors import InvalidModel
from ..factorization.map_checks import shortened
from ..model import Array, Model, Parameter
from .foldable_norms import FoldableNorm
from .moments import MAX_BYTES, Calibration, InputMoments, ResultMoments, RowLayout
from .spilled_moments import SpilledMoments

_ENTRY = "nnr_calibration"
_COLUMNS, _ROWS = ":columns", ":rows"
_VERSION = 5
_DAMAGED = (
    *(ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, RecursionError, OverflowError),
)
_GREATEST = 2**63 - 1  # of counts and sizes


def save_calibration(
    path: str | os.PathLike[str], calibration: Calibration, *, overwrite: bool = False
) -> None:
    """Write `calibration` to `path`, which ends with `.npz` or `.safetensors`.

    Raises: as :func:`nnr_codec.checkpoints.save_checkpoint`.
    """
    weights = {
        name: {
            "shape": list(moments.layout.shape),
            "groups": moments.layout.groups,
            "transposed": moments.layout.transposed,
            "positions": moments.positions,
        }
        for name, moments in calibration.moments.items()
    }
    entry = {
        "version": _VERSION,
        "samples": calibration.samples,
        "unused": list(calibration.unused),
        "weights": weights,
        "result": {n: [r.count, r.is_checked] for n, r in calibration.result.items()},
        "sensitivities": dict(calibration.sensitivities),
        "outputs": calibration.outputs,
        "digests": dict(calibration.digests),
        "norms": [asdict(norm) for norm in calibration.norms],
        "notes": list(calibration.notes),
    }
    metadata = {_ENTRY: json.dumps(entry)}
    save_checkpoint(path, list(_matrices(calibration)), overwrite=overwrite, metadata=metadata)


def _matrices(calibration: Calibration) -> Iterator[Parameter]:
    """Yield what is saved as arrays; moments that are in a file are read one by one."""
    for name, moments in calibration.moments.items():
        yield Parameter.from_array(name, moments.blocks)
    for name, result in calibration.result.items():
        for suffix, side in ((_COLUMNS, "columns"), (_ROWS, "rows")):
            matrix = getattr(result, side)
            if matrix is not None:
                load = partial(_side, calibration.result, name, side)
                yield Parameter(name + suffix, matrix.shape, matrix.dtype, load)


def _side(moments: Mapping[str, ResultMoments], name: str, side: str) -> Array:
    matrix: Array = getattr(moments[name], side)
    return matrix


def load_calibration(path: str | os.PathLike[str], *, low_memory: bool = False) -> Calibration:
    """Read what :func:`save_calibration` wrote.

    `low_memory`: let moments of gradients wait in a temporary file; those that together take more
    than 1 GiB do in any case.

    Raises:
        InvalidModel: the file cannot be read, is not a calibration file, has another version, or
            moments in it are damaged.
    """
    text = os.fspath(path)
    with open_checkpoint(path) as model:
        if _ENTRY not in model.metadata:
            raise InvalidModel(text, "is not a calibration file")
        try:
            return _calibration(text, json.loads(model.metadata[_ENTRY]), model, low_memory)
        except _DAMAGED as e:
            reason = f"is not a valid calibration file: {type(e).__name__} {e}"
            raise InvalidModel(text, reason) from e


def _calibration(text: str, entry: Any, model: Model, low_memory: bool) -> Calibration:
    """Return what a file says; raises whatever says that it is damaged."""
    if entry["version"] != _VERSION:
        reason = f"has version {entry['version']}, not {_VERSION}: calibrate again"
        raise InvalidModel(text, reason)
    moments = {
        name: _moments(text, name, weight, model[name].read())
        for name, weight in entry["weights"].items()
    }
    of_result = entry["result"]
    result = ((name, _result(text, name, numbers, model)) for name, numbers in of_result.items())
    sides = (name + side for name in of_result for side in (_COLUMNS, _ROWS))
    is_large = sum(model[side].nbytes for side in sides if side in model) > MAX_BYTES
    return Calibration(
        moments,
        _whole(entry["samples"], 1 if moments else 0),
        _names(entry["unused"]),
        SpilledMoments(result) if low_memory or is_large else dict(result),
        {name: _number(value) for name, value in entry["sensitivities"].items()},
        _text(entry["outputs"]),
        {name: _text(value) for name, value in entry["digests"].items()},
        _norms(entry["norms"]),
        _names(entry.get("notes", [])),
    )


def _norms(values: Any) -> tuple[FoldableNorm, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{shortened(values)} is not a list of norms")
    return tuple(map(_norm, values))


def _norm(values: Any) -> FoldableNorm:
    return FoldableNorm(
        scale=_text(values["scale"]),
        offset=_text(values["offset"]),
        mean=_text(values["mean"]),
        variance=_text(values["variance"]),
        epsilon=_number(values["epsilon"]),
        bias=None if values["bias"] is None else _text(values["bias"]),
        scale_sensitivity=_number(values["scale_sensitivity"]),
    )


def _whole(value: Any, least: int = 0) -> int:
    """Return a number of the JSON, which has infinities, fractions and any size as well."""
    if type(value) is not int or not least <= value <= _GREATEST:
        raise ValueError(f"{shortened(value)} is not a whole number from {least} to {_GREATEST}")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{shortened(value)} is not a list of names")
    return tuple(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shortened(value)} is not a text")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{shortened(value)} is not a number of 0 or more")
    return float(value)


def _result(path: str, name: str, numbers: Any, model: Model) -> ResultMoments:
    count, is_checked = numbers
    if not isinstance(is_checked, bool):
        raise ValueError(f"{shortened(is_checked)} is neither true nor false")
    columns, rows = (
        model[name + side].read() if name + side in model else None for side in (_COLUMNS, _ROWS)
    )
    for matrix, dimensions in ((columns, 4), (rows, 2)):
        if matrix is None:
            continue
        is_square = matrix.ndim == dimensions and matrix.shape[-1] == matrix.shape[-2]
        if (
            not matrix.size
            or not is_square
            or matrix.dtype != np.float64
            or not np.isfinite(matrix).all()
        ):
            raise InvalidModel(path, f"{name!r}: moments of gradients are damaged")
    return ResultMoments(columns, rows, _whole(count, 1), is_checked)


def _moments(path: str, name: str, weight: dict[str, Any], blocks: Any) -> InputMoments:
    shape = tuple(_whole(size, 1) for size in weight["shape"])
    groups = _whole(weight["groups"], 1)
    if shape[0] % groups or not isinstance(weight["transposed"], bool):
        raise InvalidModel(path, f"{name!r}: no layer of {groups} groups has the shape {shape}")
    layout = RowLayout(shape, groups, weight["transposed"])
    size = max(blocks.shape[-1], 1)
    expected = (groups, layout.width // size, size, size)
    if blocks.shape != expected or blocks.dtype != np.float64 or layout.width % size:
        reason = f"moments {blocks.dtype} {blocks.shape} do not fit a weight of shape {shape}"
        raise InvalidModel(path, f"{name!r}: {reason}")
    if not np.isfinite(blocks).all():
        raise InvalidModel(path, f"{name!r}: moments are not finite")
    return InputMoments(layout, blocks, _whole(weight["positions"], 1))
