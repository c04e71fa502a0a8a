"""Weights out of factors, formed while the tensors of a stream go by."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from ..bitstream import DataUnit
from ..errors import InvalidBitstream, LimitExceeded
from ..factorization.factor_tracker import FactorTracker, users_of
from ..factorization.factorizations import Factorization, factors_of
from ..factorization.model_map import MapError, ModelMap, Restored
from ..model import dtype_of, is_signed_float
from .unit_decoder import DecodedTensor


class Recomposition:
    """Gives each weight behind the last of its factors."""

    def __init__(self, wanted: Callable[[str], bool] = lambda name: False) -> None:
        """`wanted`: tells which weights are to be formed; the others come without values."""
        self._wanted = wanted
        self._map = ModelMap()
        self._is_known = False
        self._factors = FactorTracker[npt.NDArray[Any]]({})

    def use(self, model_map: ModelMap | None) -> None:
        """Take the stream's map, as soon as it is known."""
        if model_map is None or self._is_known:
            return
        self._map, self._is_known = model_map, True
        self._factors = FactorTracker(factors_of(model_map.factorizations), self._wanted)

    def results(self, tensor: DecodedTensor) -> Iterator[DecodedTensor]:
        """Yield a coded tensor, of role "factor" if it is one, and what it makes complete.

        Raises:
            InvalidBitstream: the factors are not what the map says.
            LimitExceeded: the weight does not fit the memory.
        """
        if tensor.name not in self._factors:
            yield tensor
            return
        complete = self._factors.add(tensor.name, tensor.values)
        yield replace(tensor, role="factor")
        del tensor  # so that its memory can go as soon as no weight needs it
        for weight in complete:
            yield DecodedTensor(weight, "dense", self._values(weight))

    def _values(self, weight: str) -> npt.NDArray[Any]:
        entry = self._map.factorizations[weight]
        if not self._wanted(weight):
            return entry.outlined()
        return recomposed(weight, entry, self._factors.release(weight))


class SharedFactors:
    """Keeps what several weights are made of until each of them was formed once, in any order.

    For weights that are asked for one by one: a factor is not decoded anew for each of them. When
    all have been formed, it goes, and with the next one it all begins again.
    """

    def __init__(self, factorizations: Mapping[str, Factorization] | None = None) -> None:
        """`factorizations`: of the weights that may be asked for."""
        users = users_of(factors_of(factorizations or {}))
        self._users = {name: found for name, found in users.items() if len(found) > 1}
        self._to_come = {name: set(found) for name, found in self._users.items()}
        self._kept: dict[str, npt.NDArray[Any]] = {}
        self._lock = threading.Lock()

    def weight(
        self,
        name: str,
        entry: Factorization,
        decode: Callable[[str], npt.NDArray[Any]],
    ) -> npt.NDArray[Any]:
        """Form the weight `name`, whose factors `decode` gives unless they are here.

        Raises: what `recomposed` and `decode` raise.
        """
        factors = {}
        for factor in entry.factors:
            kept = self._kept.get(factor)
            factors[factor] = decode(factor) if kept is None else kept
        values = recomposed(name, entry, list(factors.values()))
        with self._lock:
            for factor in self._users.keys() & factors.keys():
                self._kept[factor] = factors[factor]
                self._to_come[factor].discard(name)
                if not self._to_come[factor]:
                    del self._kept[factor]
                    self._to_come[factor] = set(self._users[factor])
        return values


def recomposed(
    name: str, entry: Factorization, factors: Sequence[npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """Return the weight `name` of its factors, in their order.

    Raises:
        InvalidBitstream: they are not what the map says.
        LimitExceeded: it does not fit the memory.
    """
    try:
        return entry.dense(factors)
    except MemoryError:
        limit = "memory of this machine, in elements"
        raise LimitExceeded(limit, entry.elements, 0) from None
    except MapError as error:
        raise InvalidBitstream("model map", 0, f"weight {name!r}: {error}") from None


def block_factorization(record: DataUnit, model_map: ModelMap | None) -> Factorization | None:
    """Return what a decomposed BLOCK says of its weight, as the map would say it.

    None where the map has no word for it: G has other rows than the weight, the rank is beyond
    what a weight of its shape needs, or the stream's map gives a factor another shape, or the
    weight or a factor a type that holds no numbers of both signs, or calls one of them a part.
    """
    names = tuple(record.names[:2])
    if model_map is not None and model_map.owners.keys() & {record.dense_name, *names}:
        return None
    tensors = model_map.tensors if model_map is not None else {}
    restored = tensors.get(record.dense_name, Restored())
    shape = restored.shape or tuple(record.tensor_dimensions or ())
    data_format = record.nnr_decompressed_data_format
    dtype = restored.dtype or ("float32" if data_format is None else data_format.name.lower())
    factors = [tensors.get(name, Restored()) for name in names]
    types = [dtype, *(factor.dtype for factor in factors if factor.dtype is not None)]
    if any(factor.shape is not None for factor in factors) or not all(map(_is_signed, types)):
        return None
    entry = Factorization("lr", shape, names, dtype)
    try:
        entry.ranks(record.factor_shapes())
    except MapError:
        return None
    return entry


def _is_signed(dtype: str) -> bool:
    """Whether factors can have a type; some integers of the standard are none of a tensor's."""
    try:
        return is_signed_float(dtype_of(dtype))
    except KeyError:
        return False
