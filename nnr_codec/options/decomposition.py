"""Options of decomposition: which form a model's weights get, and how much of them is kept."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ..errors import InvalidOptions

Method = Literal["none", "lr", "cp", "tucker2", "ht2", "joint", "ce1", "auto"]
JointScheme = Literal["right", "left", "binary"]
Carriage = Literal["dc", "factors"]
Objective = Literal["size", "macs", "latency"]
Rank = int | float | Literal["vbmf"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "method": get_args(Method),
    "joint_scheme": get_args(JointScheme),
    "carriage": get_args(Carriage),
    "objective": get_args(Objective),
}


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
            outputs' one.
        compression_ratio: above 1: parameters of the whole model before over after.
        joint_scheme: what the layers of a group share: the right factor, the left one, or one of
            each in two branches.
        carriage: "dc": weights of the form "lr" travel in the standard's own units; the other ones,
            and with "factors" all, as a tensor for each factor.
        objective: of "auto": "size": the fewest bytes after quantization at the error that plain
            quantization has; "macs", "latency": the least work among the forms that keep `energy`,
            of "latency" only where time is surely less.
    """

    method: Method = "none"
    rank: Rank | None = None
    energy: float | None = None
    compression_ratio: float | None = None
    joint_scheme: JointScheme = "right"
    carriage: Carriage = "dc"
    objective: Objective = "size"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InvalidOptions: a value is of the wrong type or outside its range, or values do not go
                together.
        """
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                option = "decompose" if name == "method" else name
                raise InvalidOptions(option, f"{value!r} is none of {', '.join(choices)}")
        self._check_rank()
        _check_number(self, "energy", 0, 1)
        _check_number(self, "compression_ratio", 1, math.inf)
        self._check_amounts()

    def _check_rank(self) -> None:
        rank = self.rank
        if rank is None or rank == "vbmf":
            return
        is_number = isinstance(rank, numbers.Real) and not isinstance(rank, bool)
        if not is_number or not rank > 0:
            raise InvalidOptions("rank", f"{rank!r} is neither a number above 0 nor 'vbmf'")
        if not isinstance(rank, numbers.Integral) and rank > 1:
            raise InvalidOptions("rank", f"{rank!r} is no fraction of the parameters")
        is_whole = isinstance(rank, numbers.Integral)  # of numpy's types, too
        object.__setattr__(self, "rank", int(rank) if is_whole else float(rank))

    def _check_amounts(self) -> None:
        given = [name for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidOptions(given[1], f"excludes {given[0]}")
        if self.method == "none":
            return
        if self.method == "auto":
            if self.rank is not None:
                raise InvalidOptions("rank", "is found by method 'auto'")
            if self.compression_ratio is not None and self.objective != "size":
                raise InvalidOptions("compression_ratio", "goes with objective 'size'")
            if self.objective == "size" and self.energy is not None:
                raise InvalidOptions("energy", "goes with objective 'macs' or 'latency'")
        elif not given:
            raise InvalidOptions("decompose", f"{self.method!r} needs one of {', '.join(AMOUNTS)}")
        elif self.rank == "vbmf" and self.method not in ("lr", "tucker2"):
            raise InvalidOptions("rank", f"VBMF has no ranks of {self.method!r}")


AMOUNTS = ("rank", "energy", "compression_ratio")
"""What says how much of a weight is kept; one of them at a time."""

OF_A_WEIGHT = {"decompose": "method", "rank": "rank", "energy": "energy"}
"""Options that may be set for single weights, and the attributes they set."""

DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(DecompositionOptions)}


def _check_number(options: DecompositionOptions, name: str, low: float, high: float) -> None:
    value = getattr(options, name)
    if value is None:
        return
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not low < value <= high or value == math.inf:
        most = f" and at most {high}" if high < math.inf else ""
        raise InvalidOptions(name, f"{value!r} is no finite number above {low}{most}")
