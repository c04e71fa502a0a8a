"""Which tensors of a stream are asked for: dense weights or factors, by name."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Literal

from ..bitstream import DataUnit
from ..errors import InvalidOptions
from .stream_map import StreamMap

Layers = Literal["dense", "factorized"]


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for of a stream; the arguments are those of :func:`nnr_codec.decode`.

    Raises:
        InvalidOptions: there are no such layers, or `only` is no text.
    """

    layers: Layers = "dense"
    only: str | None = None

    def __post_init__(self) -> None:
        if self.layers not in ("dense", "factorized"):
            raise InvalidOptions("layers", f"{self.layers!r} is neither 'dense' nor 'factorized'")
        if self.only is not None and not isinstance(self.only, str):
            raise InvalidOptions("only", f"{self.only!r} is no glob")

    def matches(self, name: str) -> bool:
        """Whether `only` matches a name."""
        return self.only is None or fnmatch.fnmatchcase(name, self.only)

    def selects(self, name: str, role: str, stream: StreamMap) -> bool:
        """Whether a tensor is asked for: a factor also by the name of a weight made of it."""
        weights = [name[:-2]] if role in ("G", "H") else stream.weights_of(name)
        left_out = bool(weights) if self.layers == "dense" else role == "dense"
        return not left_out and (self.only is None or any(map(self.matches, [name, *weights])))

    def forms(self, weight: str, stream: StreamMap) -> bool:
        """Whether a weight is to be formed of its factors: it, or a tie to it, is asked for."""
        ties = stream.ties(weight)
        return any(map(self.matches, [weight, *ties] if self.layers == "dense" else ties))

    def needs(self, record: DataUnit, stream: StreamMap) -> bool:
        """Whether a unit holds a tensor that is asked for, or one that such a one is tied to or
        made of."""
        names = (name for coded, _ in record.decoded_roles() for name in stream.results(coded))
        return self.only is None or any(map(self.matches, names))
