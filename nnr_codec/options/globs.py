"""Globs of tensors' names, all of them matched at once."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

_FACTOR = re.compile(r"\.factor\d+\Z")
_LITERAL = re.compile(r"((?:[^*?[]|\[[*?[]\])*)(\*?)")
"""A name, whose special characters stand in brackets, and possibly "*" behind it."""


def matches_tensor(name: str, glob: str) -> bool:
    """Whether a glob matches a tensor's name, or of a factor ``X.factor0`` the name X.

    What is the very name matches it, also if its brackets would be those of a pattern.
    """
    return any(text == glob or fnmatch.fnmatchcase(text, glob) for text in _names(name))


def escaped(name: str) -> str:
    """Return the glob that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _names(name: str) -> set[str]:
    """Return the name of a tensor, and of a factor that of its weight as well."""
    return {name, _FACTOR.sub("", name)}


class GlobIndex:
    """Finds which of many globs match a tensor, as :func:`matches_tensor` does.

    Names, and beginnings of names with "*" behind them, are looked up; only other globs are tried
    one after the other.
    """

    def __init__(self, globs: Sequence[str]) -> None:
        self._names: dict[str, list[int]] = {}
        self._beginnings: dict[str, list[int]] = {}
        self._patterns: list[tuple[int, re.Pattern[str]]] = []
        for index, glob in enumerate(globs):
            self._names.setdefault(glob, []).append(index)  # the very name
            literal = _LITERAL.fullmatch(glob)
            if literal is None:
                self._patterns.append((index, re.compile(fnmatch.translate(glob))))
            else:
                text = re.sub(r"\[(.)\]", r"\1", literal[1])
                table = self._beginnings if literal[2] else self._names
                table.setdefault(text, []).append(index)
        self._lengths = sorted({len(text) for text in self._beginnings})

    def matching(self, name: str) -> list[int]:
        """Return the indices of the globs that match tensor `name`, in order."""
        indices: set[int] = set()
        for text in _names(name):
            indices.update(self._names.get(text, ()))
            for length in self._lengths:
                if length > len(text):
                    break
                indices.update(self._beginnings.get(text[:length], ()))
            indices.update(index for index, pattern in self._patterns if pattern.match(text))
        return sorted(indices)
