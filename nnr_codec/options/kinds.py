"""Declaring an option: what values it can have, in Python and as text, and how far it reaches.

A field of a dataclass of options is declared by :func:`option` with a :class:`Kind`. Checks, the
options of single tensors, presets and the parsing of the command line follow from that.
"""

from __future__ import annotations

import math
import numbers
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache
from typing import Any

import numpy as np

from ..errors import InvalidOptions

_UNITS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3}
_UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SWITCHES = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}

_fields = cache(fields)


def _refuse(*_: Any) -> Any:
    raise ValueError


@dataclass(frozen=True)
class Kind:
    """The values that an option can have.

    Attributes:
        description: of the values, such as "a whole number from 0 to 7".
        convert: returns a value in Python's own type; ValueError or TypeError if it is no such
            value.
        parse: returns the value that a text stands for, not yet checked; ValueError or KeyError
            for another.
        metavar: what help texts call a value; None: the option is switched on or off.
    """

    description: str
    convert: Callable[[Any], Any]
    parse: Callable[[str], Any] = _refuse
    metavar: str | None = "N"


def option(
    default: Any,
    kind: Kind,
    *,
    per_tensor: bool = False,
    called: str | None = None,
    presets: Mapping[str, Any] | None = None,
) -> Any:
    """Declare an option, as a field of a dataclass.

    Args:
        default: its value unless another one is given; None: it may be left out.
        kind: the values that it can have.
        per_tensor: whether single tensors may have a value of their own.
        called: its name for single tensors and in errors; None: the field's.
        presets: its values in presets, by the presets' names.
    """
    metadata = {"kind": kind, "per_tensor": per_tensor, "called": called, "presets": presets or {}}
    return field(default=default, metadata=metadata)


def called(declared: Field[Any]) -> str:
    """Return the name of an option for single tensors and in errors."""
    return declared.metadata["called"] or declared.name


def tensor_options(options: type) -> dict[str, Field[Any]]:
    """Return the options that single tensors may have, by the names that they have there."""
    return {called(f): f for f in fields(options) if f.metadata["per_tensor"]}


def convert_all(options: Any) -> None:
    """Replace each value of a frozen dataclass by what `converted` returns, or raises."""
    for declared in _fields(options.__class__):
        given = getattr(options, declared.name)
        value = converted(given, declared)
        if value is not given:
            object.__setattr__(options, declared.name, value)


def converted(value: Any, declared: Field[Any]) -> Any:
    """Return an option's value in Python's own type; InvalidOptions if it is of another kind."""
    kind: Kind = declared.metadata["kind"]
    if value is None and declared.default is None:
        return None
    try:
        if kind.metavar is not None and isinstance(value, bool | np.bool_):
            _refuse()  # for Python a number, not for us
        return kind.convert(value)
    except (ArithmeticError, TypeError, ValueError):
        raise InvalidOptions(called(declared), f"{value!r} is not {kind.description}") from None


def whole(low: int, high: int) -> Kind:
    """Return the kind of whole numbers from `low` to `high`."""

    def convert(value: Any) -> int:
        number = operator.index(value)
        return number if low <= number <= high else _refuse()

    return Kind(f"a whole number from {low} to {high}", convert, int)


def number(low: float, high: float = math.inf, *, or_low: bool = False) -> Kind:
    """Return the kind of finite numbers above `low`, or from there on, up to `high`."""
    start = f"of {low:g} or more" if or_low else f"above {low:g}"
    most = f" and at most {high:g}" if high < math.inf else ""

    def convert(value: Any) -> float:
        within = low < value <= high or (or_low and value == low)
        is_number = isinstance(value, numbers.Real) and value < math.inf
        return float(value) if within and is_number else _refuse()

    return Kind(f"a finite number {start}{most}", convert, float)


def choice(*values: Any) -> Kind:
    """Return the kind of an option that has one of a few values, texts or numbers."""
    texts = {str(value): value for value in values}
    description = f"one of {', '.join(map(repr, values))}"
    return Kind(
        description, lambda value: values[values.index(value)], texts.__getitem__, "|".join(texts)
    )


def automatic(kind: Kind) -> Kind:
    """Return the kind that has the value "auto" besides those of another kind."""

    def convert(value: Any) -> Any:
        return "auto" if isinstance(value, str) and value == "auto" else kind.convert(value)

    def parse(text: str) -> Any:
        return "auto" if text.lower() == "auto" else kind.parse(text)

    return Kind(f"'auto' or {kind.description}", convert, parse, kind.metavar)


def optional(kind: Kind) -> Kind:
    """Return the kind that has the value None, "none" as a text, besides those of another kind."""

    def convert(value: Any) -> Any:
        return None if value is None else kind.convert(value)

    def parse(text: str) -> Any:
        return None if text.lower() == "none" else kind.parse(text)

    return Kind(f"None, {kind.description}", convert, parse, kind.metavar)


def instance(of: type) -> Kind:
    """Return the kind of the objects of a class."""
    description = f"an object of {of.__name__}"
    return Kind(description, lambda value: value if isinstance(value, of) else _refuse())


def whole_or_fraction(value: Any) -> int | float:
    """Return a number above 0 as an int or a float, also if it is of numpy's types."""
    if not isinstance(value, numbers.Real) or not 0.0 < value < math.inf:  # type: ignore[operator]
        _refuse()
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _size_text(text: str) -> int | float:
    """Return a number of bytes, with a unit or not, or a percentage as the fraction."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[kMG]|[KMG]iB|)", text)
    value, unit = match.groups() if match else _refuse()
    if unit == "%":
        return float(value) / 100
    return int(float(value) * _UNITS[unit]) if unit or "." in value else int(value)


def _globs(value: Any) -> tuple[str, ...]:
    globs = _refuse() if isinstance(value, str) else tuple(value)
    return globs if all(isinstance(glob, str) for glob in globs) else _refuse()


def _switch(value: Any) -> bool:
    return bool(value) if isinstance(value, bool | np.bool_) else _refuse()


SWITCH = Kind("True or False", _switch, lambda text: _SWITCHES[text.lower()], metavar=None)
INTEGER = Kind("a whole number", operator.index, int)
SIZE = Kind(
    "a number of bytes or a percentage above 0", whole_or_fraction, _size_text, "BYTES|PERCENT%"
)
GLOBS = Kind("a sequence of globs, which are texts", _globs)
