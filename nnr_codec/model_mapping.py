"""The encoder's side of the model map: what of a model is coded, and what the map has to tell."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .errors import InvalidModel
from .factorization.model_map import MAX_PRODUCT, Extra, ModelMap, Restored
from .model import Parameter
from .options import DecodeLimits

_STANDARD_TYPES = frozenset(["int8", "int16", "int32", "int64", "float16", "float32", "float64"])
"""Element types that nnr_decompressed_data_format, or its absence, tells decoders."""


def map_model(parameters: Iterable[Parameter]) -> tuple[list[Parameter], ModelMap]:
    """Return the parameters that get data units, and the map of what these cannot say.

    Raises:
        InvalidModel: a parameter has a name or a shape that no stream can say.
    """
    coded: list[Parameter] = []
    restored: dict[str, Restored] = {}
    extras: list[Extra] = []
    roots: dict[str, str] = {}
    for parameter in parameters:
        _check(parameter)
        name, after = parameter.name, coded[-1].name if coded else None
        dtype = parameter.dtype.name
        if parameter.size == 0:
            extras.append(Extra(name, after, None, dtype, parameter.shape))
        elif parameter.tied_to is not None:
            roots[name] = roots.get(parameter.tied_to, parameter.tied_to)  # of a chain of ties
            extras.append(Extra(name, after, roots[name]))
        else:
            coded.append(parameter)
            entry = Restored(
                None if dtype in _STANDARD_TYPES else dtype,
                () if parameter.shape == () else None,
            )
            if entry != Restored():
                restored[name] = entry
    return coded, ModelMap(restored, tuple(extras))


def _check(parameter: Parameter) -> None:
    """Refuse what our own decoder would, before anything is read."""
    limits = DecodeLimits()
    name, shape = parameter.name, parameter.shape
    if not isinstance(name, str):
        raise InvalidModel(str(name), f"the name is a {type(name).__name__}, not text")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidModel(name, "the name is not valid Unicode") from None
    if "\0" in name:
        raise InvalidModel(name, "a name must not hold a zero character")
    if size > limits.max_name_bytes:
        raise InvalidModel(
            name[:40] + "…", f"the name is longer than {limits.max_name_bytes} bytes"
        )
    if len(shape) > limits.max_dimensions:
        raise InvalidModel(name, f"has more than {limits.max_dimensions} dimensions")
    if parameter.size > limits.max_elements_per_tensor:
        raise InvalidModel(name, f"has more than {limits.max_elements_per_tensor} elements")
    if math.prod(size for size in shape if size) > MAX_PRODUCT:
        raise InvalidModel(name, f"is empty, with dimensions of more than {MAX_PRODUCT} together")
