"""Which weights are complete while their factors come, and how long a factor is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


def users_of(factors: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Return by each factor's name the weights made of it; `factors`: by the weight's name."""
    users: dict[str, list[str]] = {}
    for weight, names in factors.items():
        for name in names:
            users.setdefault(name, []).append(weight)
    return users


class FactorTracker(Generic[T]):
    """Keeps what comes with each factor (values, a shape, a report) until no weight needs it.

    A weight is complete with its last factor; weights may share factors.
    """

    def __init__(
        self,
        factors: Mapping[str, Iterable[str]],
        is_formed: Callable[[str], bool] = lambda weight: True,
    ) -> None:
        """Track weights.

        Args:
            factors: the names of each weight's factors, in order, by the weight's name.
            is_formed: tells which weights are formed; factors of the others alone are not kept.
        """
        self._is_formed = is_formed
        self._factors: dict[str, tuple[str, ...]] = {}
        self._missing: dict[str, set[str]] = {}
        self._users: dict[str, list[str]] = {}
        self._uses: dict[str, int] = {}
        self._kept: dict[str, T] = {}
        self.track(factors)

    def track(self, factors: Mapping[str, Iterable[str]]) -> None:
        """Track more weights, of whose factors none has come; `factors`: as of the constructor."""
        for weight, names in factors.items():
            self._factors[weight] = tuple(names)
            self._missing[weight] = set(self._factors[weight])
        for name, users in users_of(factors).items():
            self._users.setdefault(name, []).extend(users)
            self._uses[name] = self._uses.get(name, 0) + sum(map(self._is_formed, users))

    def __contains__(self, name: str) -> bool:
        """Whether `name` is that of a factor."""
        return name in self._users

    def add(self, name: str, value: T | None = None) -> list[str]:
        """Note the coming of tensor `name`, without a value if no weight is to be formed of it;
        return the weights whose last factor it is."""
        weights = self._users.get(name)
        if weights is None:  # it is no factor
            return []
        if value is not None and self._uses[name]:  # some weight is still to be formed of it
            self._kept[name] = value
        for weight in weights:
            self._missing[weight].discard(name)
        return [weight for weight in weights if not self._missing[weight]]

    def release(self, weight: str) -> list[T]:
        """Return what came with the factors of a complete weight, in order, to form it, once.

        What no weight needs any more is forgotten.
        """
        values = [self._kept[name] for name in self._factors[weight]]
        for name in self._factors[weight]:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._kept[name]
        return values
