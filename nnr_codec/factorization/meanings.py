"""What the integers of an INT unit stand for, as the model map says: the rule's common face.

Each meaning is a record with the keys that it has in the map. spec/model_map.md, "What integers
mean", defines them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from .map_checks import MapError, shortened, typed

Integers = npt.NDArray[np.int32]
Self = TypeVar("Self", bound="Meaning")


@dataclass(frozen=True, slots=True)
class Meaning:
    """One meaning; its fields are its keys in the map.

    Class attributes:
        kind: the word that reports and descriptions have for it.
        part_key: the key that names its second tensor; None: it has none.
    """

    kind: ClassVar[str]
    part_key: ClassVar[str | None] = None

    @property
    def part(self) -> str | None:
        """Name of the second coded tensor that the values are made of, or None."""
        return None if self.part_key is None else getattr(self, self.part_key)

    @classmethod
    def parse(cls: type[Self], entry: Mapping[str, Any]) -> Self:
        """Read the keys of a map's entry.

        Raises:
            MapError: a value is missing, or of another type.
        """
        for field in fields(cls):
            if field.default is MISSING and field.name not in entry:
                raise MapError(f"{cls.kind} needs {field.name}")
        return cls(**{key: _read(key, entry[key]) for key in cls.map_keys() if key in entry})

    @classmethod
    def map_keys(cls) -> list[str]:
        """Return the keys that it may have in the map."""
        return [field.name for field in fields(cls)]

    def to_json(self) -> dict[str, Any]:
        """Return the keys that say something."""
        items = {key: getattr(self, key) for key in self.map_keys()}
        return {key: value for key, value in items.items() if value is not None}

    def check(self, dtype: np.dtype[Any]) -> None:
        """Check that it goes with an element type, and its numbers are in their ranges.

        Raises:
            MapError: it does not, or they are not.
        """
        raise NotImplementedError

    def values(
        self, integers: Integers, part: Integers | None, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        """Return the values that integers stand for.

        Args:
            integers: the coded tensor.
            part: its second tensor, if it has one.
            dtype: element type of the values.

        Raises:
            MapError: the integers are none that it has.
        """
        raise NotImplementedError


_TYPES: dict[str, type] = {
    **dict.fromkeys(("table", "low", "scales", "mantissas", "scale_dtype"), str),
    **dict.fromkeys(("bits", "run", "fields", "negative_zero"), int),
}


def _read(key: str, value: Any) -> Any:
    if key == "scale":
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise MapError(f"scale: {shortened(value)} is no number")
        return value
    if isinstance(value, bool):
        raise MapError(f"{key}: {shortened(value)} is no number")
    return typed(value, _TYPES[key], key)


def check_bias(bias: int, bits: int) -> None:
    """Check that a bias is a word of so many bits.

    Raises:
        MapError: it is not.
    """
    if not 0 <= bias < 1 << bits:
        raise MapError(f"bits: {shortened(bias)} is no bias of {bits} bits")
