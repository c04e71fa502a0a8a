"""Plans of core experiments: TOML files, and what they say as frozen dataclasses.

::

    title = "What is compared"
    anchor = "NNCodec"                      # the method that BD-rates are against
    seed = 0                                # of the bootstrap

    [[subject]]
    source = "my_networks.py:small"         # FILE.py:FUNCTION, or vgg16, resnet50, mobilenet_v2
    stride = 5                              # every fifth sample is measured
    bd_interval = [0.001, 0.1]              # of the divergence

    [[method]]
    name = "nnr"
    codec = "nnr"
    options = { lambda_scale = 1.0 }        # of all its operating points
    points = { qp = [-38, -32, -28] }       # lists of equal length: one operating point for each

An option of a table in ``options`` has its name in ``points`` with the table's before it::

    options = { decomposition = { method = "lr" } }
    points = { "decomposition.compression_ratio" = [2, 4] }

What is in ``grid`` is combined, each value of a list with each of the others and with each of
``points``; this makes twelve::

    points = { qp = [-38, -32, -28] }
    grid = { lambda_scale = [0.0, 1.0], dq = [false, true] }

====================  =============================================================================
``title`` ``about``   texts for the page
``anchor``            the method that BD-rates are against; by default the first
``drops``             losses of accuracy at which bytes are compared; by default 0.5, 1 and 2 points
``seed``              of the bootstrap, by default 0
``resamples``         of the bootstrap, by default 1000
``[[subject]]``       ``source``; ``name``; ``stride`` and ``limit`` of its samples; ``bd_interval``
``[[method]]``        ``codec``; ``name``; ``about``; ``options``; ``points``; ``grid``
====================  =============================================================================

Files are relative to the plan. What the function of a subject returns:
:mod:`nnr_codec.experiments.subject_source`. The options of a method are those of its codec:
:mod:`nnr_codec.experiments.methods`.
"""

from __future__ import annotations

import itertools
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidOptions
from .checked_table import CheckedTable
from .methods import CODECS, codec_from
from .methods.base import Codec
from .subject_source import check_name

_DROPS = (0.5, 1.0, 2.0)
_RESAMPLES = 1000
_MOST_RESAMPLES = 100_000
_NO_LIMIT = 2**62


@dataclass(frozen=True)
class SubjectPlan:
    """A subject of a plan.

    Attributes:
        name: what it is called in results.
        source: ``FILE.py:FUNCTION`` with an absolute path, or the name of a torchvision network.
        stride: every `stride`-th sample is measured, from the first on.
        limit: at most as many samples are measured; None: no limit.
        bd_interval: divergences that BD-rates are over, as far as both methods reach them.
    """

    name: str
    source: str
    stride: int = 1
    limit: int | None = None
    bd_interval: tuple[float, float] = (0.0, math.inf)


@dataclass(frozen=True)
class Point:
    """A codec with all its options; the label is what differs between points, as ``qp=-38``."""

    label: str
    codec: Codec


@dataclass(frozen=True)
class MethodPlan:
    """A method of a plan, at one operating point or more; `about` is a line for readers."""

    name: str
    about: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Plan:
    """A core experiment: every subject with every method at its operating points.

    Attributes:
        path: the file.
        title, about: for readers.
        seed: of the bootstrap, 0 or more.
        resamples: of the bootstrap.
        drops: losses of accuracy at which bytes are compared: percent points of a share of correct
            answers, else the score's own unit.
        anchor: name of the method that BD-rates are against.
        subjects, methods: in the order of the file.
    """

    path: Path
    title: str
    about: str
    seed: int
    resamples: int
    drops: tuple[float, ...]
    anchor: str
    subjects: tuple[SubjectPlan, ...]
    methods: tuple[MethodPlan, ...]

    @property
    def method_names(self) -> list[str]:
        """Names of the methods, in order."""
        return [method.name for method in self.methods]


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan.

    Raises:
        InvalidOptions: the file is not TOML, or a key or value in it is wrong; names file and key.
        OSError: it cannot be read.
    """
    file = Path(path)
    root = CheckedTable(_toml(file), os.fspath(path))
    title = root.value("title", str, file.stem)
    about = root.value("about", str, "")
    seed = _at_least(root, "seed", 0, 0)
    resamples = _at_least(root, "resamples", 1, _RESAMPLES)
    if resamples > _MOST_RESAMPLES:
        raise root.error("resamples", f"{resamples} is more than {_MOST_RESAMPLES}")
    drops = _drops(root)
    anchor = root.value("anchor", str, "")
    subjects = tuple(_subject(table, file.parent) for table in root.tables("subject"))
    methods = tuple(_method(table, file.parent) for table in root.tables("method"))
    root.finish()
    _check_distinct(root, "subject", [subject.name for subject in subjects])
    names = [method.name for method in methods]
    _check_distinct(root, "method", names)
    if anchor and anchor not in names:
        raise root.error("anchor", f"{anchor!r} is not a method here: {', '.join(names)}")
    return Plan(file, title, about, seed, resamples, drops, anchor or names[0], subjects, methods)


def _toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (ValueError, RecursionError) as error:  # of long numbers and deep arrays as well
        raise InvalidOptions(os.fspath(path), f"is not a TOML file: {error}") from error


def _at_least(table: CheckedTable, key: str, low: int, default: int) -> int:
    value = table.value(key, int, default)
    if value < low:
        raise table.error(key, f"{value} is less than {low}")
    return value


def _drops(root: CheckedTable) -> tuple[float, ...]:
    drops = root.value("drops", list, list(_DROPS))
    if not drops:
        raise root.error("drops", "the list is empty")
    for drop in drops:
        if type(drop) not in (int, float) or not 0 < drop < math.inf:
            raise root.error("drops", f"{drop!r} is not a number above 0 and below infinity")
    return tuple(float(drop) for drop in drops)


def _subject(table: CheckedTable, folder: Path) -> SubjectPlan:
    source = table.value("source", str)
    file, colon, function = source.rpartition(":")
    if colon:
        path = folder / file
        if not path.is_file():
            raise table.error("source", f"there is no file {os.fspath(path)!r}")
        source = f"{path.resolve()}:{function}"
    else:
        try:
            check_name(source)
        except InvalidOptions as error:
            raise table.error("source", error.reason) from None
    name = table.value("name", str, function)
    stride = _at_least(table, "stride", 1, 1)
    limit = _at_least(table, "limit", 1, _NO_LIMIT)
    interval = _interval(table)
    table.finish()
    return SubjectPlan(name, source, stride, None if limit == _NO_LIMIT else limit, interval)


def _interval(table: CheckedTable) -> tuple[float, float]:
    ends = table.value("bd_interval", list, [0.0, math.inf])
    if len(ends) != 2 or not all(type(end) in (int, float) for end in ends):
        raise table.error("bd_interval", f"{ends!r} is not a list of two numbers")
    if not 0 <= ends[0] < ends[1]:
        raise table.error("bd_interval", f"{ends!r} is not 0 or more, and then more than that")
    return float(ends[0]), float(ends[1])


def _method(table: CheckedTable, folder: Path) -> MethodPlan:
    codec = table.value("codec", str)
    name = table.value("name", str, codec)
    about = table.value("about", str, "")
    options = table.value("options", dict, {})
    columns = table.value("points", dict, {})
    axes = table.value("grid", dict, {})
    table.finish()
    if codec not in CODECS:
        raise table.error("codec", f"{codec!r} is none of {', '.join(CODECS)}")
    points = []
    for row in _rows(table, columns, axes):
        try:
            made = codec_from(codec, _joined(options, row), folder.resolve())
        except InvalidOptions as error:
            key = error.option.removeprefix("external: ")
            names = {key, key.partition(".")[0]}
            groups = {"points": columns, "grid": axes}
            group = next((name for name, keys in groups.items() if names & keys.keys()), "options")
            raise table.error(f"{group}.{key}", error.reason) from None
        points.append(Point(_label(row), made))
    _check_distinct(table, "points", [point.label for point in points])
    return MethodPlan(name, about, tuple(points))


def _rows(
    table: CheckedTable, columns: Mapping[str, Any], axes: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return a row of options for each operating point.

    `columns`: lists of equal length; `axes`: lists that are combined with these and each other.
    """
    for group, lists in (("points", columns), ("grid", axes)):
        for key, values in lists.items():
            if not isinstance(values, list) or not values:
                raise table.error(f"{group}.{key}", f"{values!r} is not a list of values")
    for key in axes:
        within = [other for other in (*columns, *axes) if other.startswith(f"{key}.")]
        within += [other for other in columns if key == other or key.startswith(f"{other}.")]
        if within:
            raise table.error(f"grid.{key}", f"{within[0]!r} says the same")
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        texts = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise table.error("points", f"the lists are not equally long: {texts}")
    rows = zip(*columns.values(), strict=True) if columns else [()]
    return [
        dict(zip([*columns, *axes], [*row, *combination], strict=True))
        for row in rows
        for combination in itertools.product(*axes.values())
    ]


def _joined(options: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options with those of a point, ``TABLE.NAME`` in the table's place."""
    joined = dict(options)
    for key, value in row.items():
        first, dot, rest = key.partition(".")
        if not dot:
            joined[key] = value
            continue
        table = joined.get(first, {})
        if not isinstance(table, Mapping):
            raise InvalidOptions(key, f"{first} is not a table")
        joined[first] = _joined(table, {rest: value})
    return joined


def _label(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def _check_distinct(table: CheckedTable, key: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise table.error(key, f"{name!r} stands there more than once")
