"""A module that is filled tensor by tensor, its layers replaced where their weights are factors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from ..checkpoints.torch_tensors import tensor_of
from ..errors import InvalidModel, NnrWarning
from ..factorization.factor_tracker import FactorTracker
from ..factorization.factorizations import Factorization
from ..model import Array, is_extension
from .factorized import SharedParameters, factored
from .replacing import check_shape, layer_of, replace_layer

_MOST_NAMED = 8
_STACK_LEVEL = 4
"""Of the caller of `load_into`, from a function that is called by one that this calls."""

State = Mapping[str, torch.Tensor]


class ModuleFiller:
    """Puts tensors into a module, in the order in which they come.

    Of a weight in factors, the layer is replaced when the last factor comes, or the weight formed;
    of the factors none is kept here that no other weight needs.
    """

    def __init__(self, module: nn.Module, state: State, *, replaces: bool) -> None:
        """`state`: of the module, with its variables; `replaces`: whether layers may be replaced,
        else weights are formed."""
        self._module = module
        self._state = state
        self._replaces = replaces
        self._weights: dict[str, Factorization] = {}
        self._factors = FactorTracker[Array]({}, state.__contains__)
        self._shared: SharedParameters = {}

    def expect(self, weights: Mapping[str, Factorization]) -> None:
        """Expect weights whose factors are still to come, by name."""
        self._weights.update(weights)
        self._factors.track({name: entry.factors for name, entry in weights.items()})

    def is_factor(self, name: str) -> bool:
        """Whether an expected weight is made of tensor `name`."""
        return name in self._factors

    @torch.no_grad()
    def add(self, name: str, values: Array) -> None:
        """Put a tensor, of the right shape, where it belongs, if the module has it.

        Raises:
            InvalidModel: it completes the factors of a layer that cannot be replaced.
        """
        if name in self._state and not self.is_factor(name):
            _copy(self._state[name], name, values)
        complete = self._factors.add(name, values)
        del values  # so that its memory can go, as that of factors below
        for weight in filter(self._state.__contains__, complete):
            self._form(weight, self._factors.release(weight))

    def _form(self, weight: str, factors: list[Array]) -> None:
        entry = self._weights[weight]
        if self._replaces:
            ranks = entry.ranks([factor.shape for factor in factors])
            layer = layer_of(self._module, weight, entry.form, entry.shape, ranks)
            made = factored(layer, entry.weight(factors), entry.factors, self._shared)
            replace_layer(self._module, weight, made)
        # Another layer, which is not replaced, may be tied to the weight.
        if not self._replaces or self._is_in_module(self._state[weight]):
            _copy(self._state[weight], weight, entry.dense(factors))

    def _is_in_module(self, tensor: torch.Tensor) -> bool:
        parts = self._module.modules()
        return any(p is tensor for part in parts for p in part.parameters(recurse=False))


def _copy(target: torch.Tensor, name: str, values: Array) -> None:
    """Copy values, of which no other copy is made where torch has their type."""
    if is_extension(values.dtype) and not hasattr(torch, values.dtype.name):
        values = values.astype(np.float32)  # which holds all of its values
    target.copy_(tensor_of(name, values))


class Agreement:
    """Compares the tensors that a source has with those of a module."""

    def __init__(self, state: State, source: str) -> None:
        """`source`: what messages call it."""
        self._state = state
        self._source = source
        self._loaded: set[str] = set()
        self._differences: list[tuple[str, str]] = []

    def note(self, name: str, shape: tuple[int, ...]) -> None:
        """Note a tensor of the source.

        Raises:
            InvalidModel: the module has it in another shape, or without memory for its values.
        """
        self._loaded.add(name)
        if name not in self._state:
            reason = f"is in {self._source!r}, and the module has no such tensor"
            self._differences.append((name, reason))
            return
        check_shape(name, shape, self._state[name])
        if self._state[name].is_meta:
            reason = "is on the device 'meta' in the module: use to_empty first"
            raise InvalidModel(name, reason)

    def refuse(self) -> None:
        """Raise InvalidModel if a tensor was noted that the module does not have."""
        if self._differences:
            raise InvalidModel(*self._differences[0])

    def note_end(self) -> None:
        """Note the tensors of the module that the source does not have, when it has no more."""
        self._differences += self._missing()

    def _missing(self) -> Iterator[tuple[str, str]]:
        loaded = {id(self._state[name]) for name in self._loaded if name in self._state}
        for name, tensor in self._state.items():
            is_counter = name.rpartition(".")[2] == "num_batches_tracked"
            if name not in self._loaded and id(tensor) not in loaded and not is_counter:
                yield name, f"is in the module, and not in {self._source!r}"

    def warn(self) -> None:
        """Warn the caller of `load_into` of the tensors that only one of both has."""
        for name, reason in self._differences[:_MOST_NAMED]:
            warnings.warn(f"{name!r} {reason}", NnrWarning, stacklevel=_STACK_LEVEL)
        if len(self._differences) > _MOST_NAMED:
            more = len(self._differences) - _MOST_NAMED
            text = f"{more} more tensors are in one of both alone"
            warnings.warn(text, NnrWarning, stacklevel=_STACK_LEVEL)
