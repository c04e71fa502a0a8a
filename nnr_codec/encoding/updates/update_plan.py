"""What of a model an update of its base holds, and what its model map says of the base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from ...decoding.updates.composition import ModelTensor
from ...factorization.base_entry import BaseEntry, runs_of
from ...factorization.extras import Extra
from ...factorization.factor_tracker import FactorTracker
from ...factorization.factorizations import Factorization, factors_of
from ...factorization.model_map import ModelMap
from ...model import Parameter, dtype_name
from ...options import EncodeOptions
from ...support.ordered_calls import has_threads, ordered_results
from .comparison import TensorComparison
from .difference import Difference, WordDifference
from .update_source import UpdateSource

_BYTES_PER_ELEMENT = 24
"""What a comparison holds of an element: both values, their difference, and integers."""


def planned_update(
    names: list[str],
    coded: list[Parameter],
    model_map: ModelMap,
    options: EncodeOptions,
    source: UpdateSource,
    executor: Executor | None = None,
) -> tuple[list[Parameter], ModelMap]:
    """Return what gets data units, and the map, of an update.

    Args:
        names: of the model's tensors, in order.
        coded: what would get data units without a base, in order: factors in place of weights.
        model_map: what decoders would have to know then.
        options: of the encoder.
        source: what the update is made against.
        executor: compares tensors side by side, if its workers are threads.

    Raises:
        InvalidModel: a tensor cannot be read.
        BitstreamError: the base is damaged.
    """
    plan = _UpdatePlan(names, coded, model_map, source)
    calls = (
        (_BYTES_PER_ELEMENT * parameter.size, partial(plan.comparison, parameter, options))
        for parameter in coded
    )
    threads = executor if has_threads(executor) else None
    chosen = list(ordered_results(threads, TensorComparison.chosen, calls))
    return chosen, plan.model_map(chosen)


class _UpdatePlan:
    """The structure of an update: weights, ties and empty tensors that the base does not have."""

    def __init__(
        self,
        names: list[str],
        coded: list[Parameter],
        model_map: ModelMap,
        source: UpdateSource,
    ) -> None:
        self._names = names
        self._map = model_map
        self._source = source
        self._made = source.base.composition
        self._factors = {
            name for entry in model_map.factorizations.values() for name in entry.factors
        }
        self._shapes = {parameter.name: parameter.shape for parameter in coded}
        self._extras = tuple(self._changed_extras(model_map.extras))
        firsts = {extra.tied_to for extra in self._extras}
        self._factorizations = {
            name: entry
            for name, entry in model_map.factorizations.items()
            if name in firsts or not self._is_known(name, entry)
        }
        factors = (entry.factors for entry in self._factorizations.values())
        self._needed = firsts | {name for names in factors for name in names}

    def _changed_extras(self, extras: Iterable[Extra]) -> Iterator[Extra]:
        """Yield the ties and empty tensors that the base does not have as they are."""
        for extra in extras:
            known = self._made.tensors.get(extra.name)
            if extra.tied_to is not None:
                if known is None or known.tied_to != extra.tied_to:
                    yield replace(extra, after=extra.tied_to)
            elif known is None or not _is_empty_like(known, extra):
                yield replace(extra, after=None)

    def _is_known(self, weight: str, entry: Factorization) -> bool:
        """Whether the base has a weight of the same factors, of the same shapes."""
        known = self._made.tensors.get(weight)
        if known is None or known.entry != entry:
            return False
        pieces = self._made.pieces
        return all(pieces[name].shape == self._shapes[name] for name in entry.factors)

    def comparison(self, parameter: Parameter, options: EncodeOptions) -> TensorComparison:
        """Return what decides how a tensor is coded."""
        name = parameter.name
        known = self._made.tensors.get(name)
        is_other = known is not None and known.role != "coded"  # made of others, and no longer so
        residual = self._source.residuals.get(name)
        piece = self._made.piece(name)
        if name in self._factors and piece is not None and piece.operations:
            piece = None  # no factor is a sum with a product
        return TensorComparison(
            parameter,
            piece,
            partial(self._source.base.read, name),
            options,
            _same_kind(self._source.old.get(name), parameter),
            residual if residual is not None and residual.shape == parameter.shape else None,
            is_needed=name in self._needed or is_other,
        )

    def model_map(self, chosen: list[Parameter]) -> ModelMap:
        """Return the map of the update, in which these are coded."""
        whole = [
            parameter.name
            for parameter in chosen
            if not isinstance(parameter, Difference) and self._made.piece(parameter.name)
        ]
        xor = [p.name for p in chosen if isinstance(p, WordDifference) and p.xor]
        known = self._made.tensors
        in_model = set(self._names)
        removed = tuple(name for name in known if name not in in_model)
        new = [name for name in self._own_names(chosen) if name not in known]
        listed = [*(name for name in known if name in in_model), *new]
        last = self._source.base.streams[-1]
        entry = BaseEntry(
            last.digest,
            self._source.digest,
            tuple(whole),
            tuple(xor),
            removed,
            runs_of(self._names, listed),
        )
        differences = {parameter.name for parameter in chosen if isinstance(parameter, Difference)}
        rules = {n: rule for n, rule in self._map.tensors.items() if n not in differences}
        return replace(
            self._map,
            tensors=rules,
            extras=self._extras,
            factorizations=self._factorizations,
            base=entry,
        )

    def _own_names(self, chosen: list[Parameter]) -> Iterator[str]:
        """Yield the names of the model's tensors in the order in which the update has them."""
        behind: dict[str | None, list[str]] = {}
        for extra in self._extras:
            behind.setdefault(extra.after, []).append(extra.name)
        yield from behind.get(None, [])
        tracker = FactorTracker[str](factors_of(self._factorizations))
        for parameter in chosen:
            if parameter.name not in self._factors:
                yield parameter.name
            yield from behind.get(parameter.name, [])
            for weight in tracker.add(parameter.name, ""):
                yield weight
                yield from behind.get(weight, [])


def _is_empty_like(known: ModelTensor, extra: Extra) -> bool:
    is_alike = known.shape == extra.shape and dtype_name(known.dtype) == extra.dtype
    return known.role == "empty" and is_alike


def _same_kind(old: Parameter | None, new: Parameter) -> Parameter | None:
    """Return the old tensor if it can be compared with the new one."""
    if old is None or (old.shape, old.dtype) != (new.shape, new.dtype):
        return None
    return old
