"""Options of decomposition: which form a model's weights get, and how much of them is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import InvalidOptions
from .kinds import Kind, choice, convert_all, number, option, whole_or_fraction

Method = Literal["none", "lr", "cp", "tucker2", "ht2", "joint", "ce1", "auto"]
JointScheme = Literal["right", "left", "binary"]
Carriage = Literal["dc", "factors"]
Objective = Literal["size", "macs", "latency"]
Rank = int | float | Literal["vbmf"]


def _rank(value: Any) -> Rank:
    if isinstance(value, str) and value == "vbmf":
        return "vbmf"
    rank = whole_or_fraction(value)
    if isinstance(rank, float) and rank > 1:
        raise ValueError
    return rank


def _parsed_rank(text: str) -> Rank:
    if text == "vbmf":
        return "vbmf"
    return float(text) if "." in text or "e" in text.lower() else int(text)


RANK = Kind(
    "a rank (a whole number above 0), a fraction of the parameters (0 to 1), or 'vbmf'",
    _rank,
    _parsed_rank,
    "N|FRACTION|vbmf",
)


@dataclass(frozen=True)
class DecompositionOptions:
    """How weights are decomposed before they are quantized. By default none is.

    A method other than "none" and "auto" needs one of `rank`, `energy`, `compression_ratio`. A
    layer is only ever decomposed where that takes fewer parameters.

    Attributes:
        method: "lr", "cp", "tucker2", "ht2": that form for every layer that can have it; "joint":
            repeated layers share a factor; "ce1": LR for linear layers and 1x1 convolutions, CP for
            the others (CE-1, method 5); "auto": for each layer what `objective` says, or, with a
            `compression_ratio`, the forms of the least errors at that ratio.
        rank: a rank (int); the fraction of each layer's parameters that is kept (float, 0 to 1);
            or "vbmf", the ranks that variational Bayesian matrix factorization finds, of "lr" and
            "tucker2".
        energy: 0 to 1, the part of the squared norm that is kept; with calibration, of the
            outputs'.
        compression_ratio: above 1: parameters of the whole model before over after.
        joint_scheme: what the layers of a group share: the right factor, the left one, or one of
            each in two branches.
        carriage: "dc": weights of the form "lr" travel in the standard's own units; the other ones,
            and with "factors" all, as a tensor for each factor.
        objective: of "auto": "size": the fewest bytes after quantization at the error that the
            dense weight has, of the network's result if a calibration knows that; "macs",
            "latency": the least work among the forms that keep `energy`, of "latency" only where
            time is surely less.
    """

    method: Method = option("none", choice(*get_args(Method)), per_tensor=True, called="decompose")
    rank: Rank | None = option(None, RANK, per_tensor=True)
    energy: float | None = option(None, number(0, 1), per_tensor=True)
    compression_ratio: float | None = option(None, number(1))
    joint_scheme: JointScheme = option("right", choice(*get_args(JointScheme)))
    carriage: Carriage = option("dc", choice(*get_args(Carriage)))
    objective: Objective = option("size", choice(*get_args(Objective)))

    def __post_init__(self) -> None:
        """Raise InvalidOptions if a value is of another kind, or values contradict each other."""
        convert_all(self)
        self._check_amounts()

    def _check_amounts(self) -> None:
        given = [name for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidOptions(given[1], f"cannot be given together with {given[0]}")
        if self.method == "none":
            return
        if self.method == "auto":
            if self.rank is not None:
                raise InvalidOptions("rank", "the method 'auto' chooses ranks itself")
            if self.compression_ratio is not None and self.objective != "size":
                raise InvalidOptions("compression_ratio", "needs the objective 'size'")
            if self.objective == "size" and self.energy is not None:
                raise InvalidOptions("energy", "needs the objective 'macs' or 'latency'")
        elif not given:
            raise InvalidOptions("decompose", f"{self.method!r} needs one of {', '.join(AMOUNTS)}")
        elif self.rank == "vbmf" and self.method not in ("lr", "tucker2"):
            raise InvalidOptions("rank", f"VBMF has no ranks of {self.method!r}")


AMOUNTS = ("rank", "energy", "compression_ratio")
"""What says how much of a weight is kept; one of them at a time."""
