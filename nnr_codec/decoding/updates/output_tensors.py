"""The tensors of a model that are handed out, before any is decoded."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...factorization.factor_tracker import users_of
from ...factorization.factorizations import factors_of
from ..stream_map import Selection
from .composition import Composition


class OutputTensor(NamedTuple):
    """A tensor that is handed out.

    Attributes:
        name, role, tied_to: as of ``DecodedTensor``.
        shape, dtype: as it comes back.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    tied_to: str | None = None

    @property
    def source(self) -> str:
        """The name of the tensor whose values it has: its own, but of a tie."""
        return self.name if self.tied_to is None else self.tied_to

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return int(np.prod(self.shape, dtype=np.int64))


def output_tensors(composition: Composition, selection: Selection) -> list[OutputTensor]:
    """Return the tensors that are selected, in order: weights, or the factors in their places."""
    users = users_of(factors_of(composition.factorizations))
    outputs: dict[str, OutputTensor] = {}
    for name, tensor in composition.tensors.items():
        shape, dtype = tensor.shape, tensor.dtype
        if tensor.entry is None or selection.layers == "dense":
            if selection.matches(name):
                role = "weight" if tensor.role == "coded" else tensor.role
                outputs[name] = OutputTensor(name, role, shape, dtype, tensor.tied_to)
            continue
        for factor in tensor.entry.factors:
            if any(map(selection.matches, [factor, *users[factor]])):
                piece = composition.pieces[factor]
                outputs.setdefault(factor, OutputTensor(factor, "weight", piece.shape, piece.dtype))
    return list(outputs.values())
