"""Model files whose tensors are factors, with the map beside them that tells what they make."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import partial

from ..errors import InvalidModel, UnsupportedFeature
from ..model import Array, Model, Parameter, dtype_of, is_float
from ..options import DecodeLimits
from .factor_tracker import FactorTracker
from .factorizations import FactorChecks, Factorization, factors_of
from .forms import FactoredWeight
from .map_checks import MapError
from .metadata import KEY
from .model_map import ModelMap, parse_model_map


def factorizations_of(
    source: str,
    metadata: Mapping[str, str],
    parameters: Iterable[Parameter],
    limits: DecodeLimits | None = None,
) -> Mapping[str, Factorization]:
    """Return what the factors among a file's tensors make, by the name of the weight.

    Args:
        source: name of the file, for messages.
        metadata: its text entries.
        parameters: its tensors.
        limits: what the map may ask for; by default ``DecodeLimits()``.

    Raises:
        InvalidModel: the map is damaged, or does not fit the tensors.
        LimitExceeded: a weight is larger than is allowed.
    """
    limits = limits or DecodeLimits()
    tensors = {parameter.name: parameter for parameter in parameters}
    text = metadata.get(KEY, "")
    try:
        if len(text) > limits.max_topology_bytes:  # JSON takes many times its size
            raise MapError(f"{len(text)} characters, the limit is {limits.max_topology_bytes}")
        model_map = parse_model_map(text, limits.max_dimensions)
        entries = {} if model_map is None else model_map.factorizations
        checks = FactorChecks(entries, limits)
        for weight in entries:
            if weight in tensors:
                raise MapError(f"{weight!r} is a tensor and a factored weight")
        for factor in dict.fromkeys(name for entry in entries.values() for name in entry.factors):
            if factor not in tensors or not is_float(tensors[factor].dtype):
                raise MapError(f"there is no factor {factor!r} of floats")
            checks.note(factor, tensors[factor].shape)
    except (MapError, UnsupportedFeature) as error:
        raise InvalidModel(source, f"its model map: {error}") from None
    return entries


def factors_metadata(
    factorizations: Mapping[str, Factorization], names: Container[str]
) -> dict[str, str]:
    """Return the entry that a file of factors has beside its tensors; nothing without factors.

    Args:
        factorizations: of the stream.
        names: of the file's tensors; what is not all there is left out.
    """
    entries = factorizations.items()
    complete = {name: e for name, e in entries if all(f in names for f in e.factors)}
    return {KEY: ModelMap(factorizations=complete).to_text()} if complete else {}


def with_weights(model: Model) -> tuple[Model, dict[str, FactoredWeight]]:
    """Return a model of factors, which its map tells, as that of the weights; and the factors.

    Each weight stands where its last factor did. A model without such a map is returned as it is.

    Raises:
        InvalidModel: the map is damaged, or does not fit the model.
    """
    source = model.source or "the model"
    entries = factorizations_of(source, model.metadata, model.values())
    if not entries:
        return model, {}
    factors = FactorTracker[Array](factors_of(entries))
    weights: dict[str, FactoredWeight] = {}
    parameters = []
    for name, parameter in model.items():
        if name not in factors:
            parameters.append(parameter)
            continue
        for weight in factors.add(name, parameter.read()):
            weights[weight] = entries[weight].weight(factors.release(weight))
            entry = entries[weight]
            dense = partial(entry.dense, weights[weight].factors)
            parameters.append(Parameter(weight, entry.shape, dtype_of(entry.dtype), dense))
    metadata = {key: text for key, text in model.metadata.items() if key != KEY}
    return model.with_parameters(parameters, metadata), weights
