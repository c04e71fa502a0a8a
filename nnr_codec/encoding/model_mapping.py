"""The encoder's side of the model map: what of a model is coded, and what the map says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..errors import InvalidModel
from ..factorization.extras import Extra
from ..factorization.map_checks import MAX_PRODUCT
from ..factorization.model_map import ModelMap
from ..factorization.tensor_rules import TensorRule
from ..model import Parameter, dtype_name, is_float, is_signed_float
from ..options import DecodeLimits, EncodeOptions
from .factor_transport import FactorTransport
from .representation import Representation

_STANDARD_TYPES = frozenset(["int8", "int16", "int32", "int64", "float16", "float32", "float64"])
"""Element types that nnr_decompressed_data_format, or its absence, tells decoders."""

_LEAST_PACKED = 64
"""Elements of integers for which it may pay to unpack them."""


def map_model(
    parameters: Iterable[Parameter], factored: Mapping[str, FactorTransport]
) -> tuple[list[Parameter], ModelMap]:
    """Return the parameters that get data units, and the map of what these cannot say.

    Factors stand where their weights did; `factored` has the weights that travel so, by name.

    Raises:
        InvalidModel: a parameter has a name or a shape that no stream can say.
    """
    coded: list[Parameter] = []
    rules: dict[str, TensorRule] = {}
    extras: list[Extra] = []
    roots: dict[str, str] = {}
    last: str | None = None  # coded, or made of what is
    for parameter in parameters:
        _check(parameter)
        name, after = parameter.name, last
        dtype = dtype_name(parameter.dtype)
        if name in factored:
            coded += factored[name].new_factors
            last = name
            if factored[name].is_block and dtype != "float32":
                rules[name] = TensorRule(dtype)
        elif parameter.size == 0:
            extras.append(Extra(name, after, None, dtype, parameter.shape))
        elif parameter.tied_to is not None:
            roots[name] = roots.get(parameter.tied_to, parameter.tied_to)  # of a chain of ties
            extras.append(Extra(name, after, roots[name]))
        else:
            coded.append(parameter)
            last = name
            entry = rule_of(parameter)
            if entry != TensorRule():
                rules[name] = entry
    for factor in (p for weight in factored.values() for p in weight.new_factors):
        _check(factor)
    factorizations = {name: w.entry for name, w in factored.items() if not w.is_block}
    return coded, ModelMap(rules, tuple(extras), factorizations=factorizations)


def is_quantized(parameter: Parameter, options: EncodeOptions) -> bool:
    """Whether a parameter is quantized, so that its size depends on its qp."""
    coded = parameter.size > 0 and parameter.tied_to is None
    return coded and is_signed_float(parameter.dtype) and options.quantizes(parameter.name)


def may_need_representation(parameter: Parameter) -> bool:
    """Whether what is not quantized may need an exact representation: floats, wide integers, and
    integers that may be packed fields."""
    wide = dtype_name(parameter.dtype) in ("int64", "uint64", "uint32")
    packed = parameter.dtype.kind in "iu" and parameter.size >= _LEAST_PACKED
    return wide or packed or is_float(parameter.dtype)


def rule_of(parameter: Parameter, exact: Representation | None = None) -> TensorRule:
    """Return what the map has to say of a coded tensor; `exact`: how it is coded exactly."""
    dtype = dtype_name(parameter.dtype)
    shape = () if parameter.shape == () else None
    if exact is None or exact.entry.meaning is None:
        return TensorRule(None if dtype in _STANDARD_TYPES else dtype, shape)
    return exact.entry if exact.entry.shape is not None else replace(exact.entry, shape=shape)


def with_representations(
    model_map: ModelMap, parameters: Iterable[Parameter], exact: Mapping[str, Representation]
) -> ModelMap:
    """Return the map with what it has to say of exact representations."""
    rules = {p.name: rule_of(p, exact[p.name]) for p in parameters if p.name in exact}
    rules = {name: rule for name, rule in rules.items() if rule != TensorRule()}
    return replace(model_map, tensors={**model_map.tensors, **rules})


def _check(parameter: Parameter) -> None:
    """Refuse what decoders with the default limits would, before anything is read."""
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
