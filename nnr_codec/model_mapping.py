"""The encoder's side of the model map: what of a model is coded, and what the map has to tell."""

from __future__ import annotations

from collections.abc import Iterable

from .factorization.model_map import Extra, ModelMap, Restored
from .model import Parameter

_STANDARD_TYPES = frozenset(["int8", "int16", "int32", "int64", "float16", "float32", "float64"])
"""Element types that nnr_decompressed_data_format, or its absence, tells decoders."""


def map_model(parameters: Iterable[Parameter]) -> tuple[list[Parameter], ModelMap]:
    """Return the parameters that get data units, and the map of what these cannot say."""
    coded: list[Parameter] = []
    restored: dict[str, Restored] = {}
    extras: list[Extra] = []
    for parameter in parameters:
        name, after = parameter.name, coded[-1].name if coded else None
        dtype = parameter.dtype.name
        if parameter.size == 0:
            extras.append(Extra(name, after, None, dtype, parameter.shape))
        elif parameter.tied_to is not None:
            extras.append(Extra(name, after, parameter.tied_to))
        else:
            coded.append(parameter)
            entry = Restored(
                None if dtype in _STANDARD_TYPES else dtype,
                () if parameter.shape == () else None,
            )
            if entry != Restored():
                restored[name] = entry
    return coded, ModelMap(restored, tuple(extras))
