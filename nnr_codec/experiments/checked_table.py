"""Tables of a plan, read key by key: a wrong or unknown key is refused by its full name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from ..errors import InvalidOptions

T = TypeVar("T")


class CheckedTable:
    """A table whose keys are read one by one; `finish` refuses those that were not read.

    Messages name the plan's `file`, and with `prefix` where the table stands, as ``method[1]``.
    """

    def __init__(self, values: Mapping[str, Any], file: str, prefix: str = "") -> None:
        self._values = dict(values)
        self._known: list[str] = []
        self.file = file
        self.prefix = prefix

    def error(self, key: str, reason: str) -> InvalidOptions:
        """Return the error that names the file and a key of this table."""
        path = ".".join(part for part in (self.prefix, key) if part)
        return InvalidOptions(f"{self.file}: {path}", reason)

    def value(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return the value of `key`, or `default` unless that is None.

        Raises InvalidOptions if it is missing or not of `kind`; a whole number will do for a float.
        """
        self._known.append(key)
        if key not in self._values:
            if default is None:
                raise self.error(key, "is missing")
            return default
        value = self._values.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"{value!r} is not a {_KINDS[kind]}")
        return value

    def texts(self, key: str, default: list[str] | None = None) -> tuple[str, ...]:
        """Return a list of strings; errors are those of `value`."""
        texts = self.value(key, list, default)
        for text in texts:
            if not isinstance(text, str):
                raise self.error(key, f"{text!r} is not a string")
        return tuple(texts)

    def tables(self, key: str) -> Iterator[CheckedTable]:
        """Yield the tables of a list, ``[[key]]`` in the file, of which there is at least one."""
        tables = self.value(key, list, [])
        if not tables:
            raise self.error(key, f"is missing: a plan has one [[{key}]] or more")
        for index, values in enumerate(tables):
            if not isinstance(values, Mapping):
                raise self.error(f"{key}[{index}]", f"{values!r} is not a table")
            yield CheckedTable(values, self.file, f"{key}[{index}]")

    def finish(self) -> None:
        """Raise InvalidOptions if a key is left."""
        for key in self._values:
            raise self.error(key, f"is unknown; known are {', '.join(self._known)}")


_KINDS: Mapping[type, str] = {
    str: "string",
    int: "whole number",
    float: "number",
    bool: "boolean",
    list: "list",
    dict: "table",
}


def options_of(kind: type[T], values: Mapping[str, Any]) -> T:
    """Make a dataclass of options from a table, nested ones from nested tables.

    Raises InvalidOptions if a key is no field, or a value is refused.
    """
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind} is not a dataclass")
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    options: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise InvalidOptions(key, f"is unknown; there are {', '.join(names)}")
        options[key] = _converted(key, value, hints[key])
    return kind(**options)


def _converted(key: str, value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type)]
    nested = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if not isinstance(value, Mapping) or not nested:
        return value
    try:
        return options_of(nested[0], value)
    except InvalidOptions as error:
        raise InvalidOptions(f"{key}.{error.option}", error.reason) from None
