"""The cases of the corpus: a folder each, with `case.json` and streams (see README.md)."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

CORPUS = Path(__file__).parents[1] / "corpus"
CATEGORIES = ("data", "features", "limits", "issues", "invalid", "updates", "contents")
ERRORS = ("invalid", "truncated", "unsupported", "limit", "missing parent", "wrong base")
EVIDENCE = ("peer", "text")


class BadCase(Exception):
    """A case's folder is not as it should be; the message names it."""


@dataclass(frozen=True)
class ExpectedTensor:
    """A tensor of the result: `sha256` is that of its elements, row-major and little-endian.

    A factor of a decomposed weight may be handed out beside the product, or not.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    factor: bool = False


@dataclass(frozen=True)
class CaseFiles:
    """A case to be written; exactly one of `tensors` and `error` is given."""

    stream: bytes
    exercises: str
    section: str
    parents: Sequence[bytes | str] = ()
    tensors: Sequence[ExpectedTensor] | None = None
    error: str | None = None
    evidence: str = "text"
    errata: Sequence[str] = ()
    note: str = ""
    base: Sequence[bytes] | None = None


@dataclass(frozen=True)
class Case:
    """A case of the corpus.

    Attributes:
        name: the category and the name of its folder.
        stream: path of the bitstream.
        parents: paths of the earlier streams of its series, oldest first.
        base: of an update by the model map, paths of what it is added to, oldest first; None of
            other streams.
        exercises: what it is there for.
        section: of spec/bitstream.md.
        evidence: "peer" if the reference does what is expected, "text" for our reading alone.
        tensors: what decoding gives, in the order of the stream; None if it must be refused.
        error: why it must be refused, one of ERRORS.
        errata: points of spec/errata.md that it touches.
        note: what the reference does, where that differs.
    """

    name: str
    stream: Path
    exercises: str
    section: str
    evidence: str
    parents: tuple[Path, ...] = ()
    base: tuple[Path, ...] | None = None
    tensors: tuple[ExpectedTensor, ...] | None = None
    error: str | None = None
    errata: tuple[str, ...] = ()
    note: str = field(default="", compare=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """All streams of the case."""
        return (self.stream, *self.parents, *(self.base or ()))


def describe(
    tensors: Mapping[str, npt.NDArray[Any]], factors: Collection[str] = ()
) -> list[ExpectedTensor]:
    """What a case says of decoded tensors."""
    return [
        ExpectedTensor(name, values.dtype.name, values.shape, digest(values), name in factors)
        for name, values in tensors.items()
    ]


def digest(values: npt.NDArray[Any]) -> str:
    """SHA-256 of the elements, row-major and little-endian, in hexadecimal."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.tobytes()).hexdigest()


def write_case(folder: Path, case: CaseFiles) -> None:
    """Write a case; parents that are texts are paths, relative to the folder.

    Raises:
        OSError: the folder or its files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stream.nnr").write_bytes(case.stream)
    parents = []
    for number, parent in enumerate(case.parents):
        if isinstance(parent, bytes):
            parents.append(f"parent{number}.nnr")
            (folder / parents[-1]).write_bytes(parent)
        else:
            parents.append(parent)
    texts = ("exercises", "section", "evidence", "errata", "note")
    known = {key: getattr(case, key) for key in texts} | {"parents": parents}
    known = {key: value for key, value in known.items() if value}
    if case.base is not None:
        known["base"] = [f"base{number}.nnr" for number in range(len(case.base))]
        for name, data in zip(known["base"], case.base, strict=True):
            (folder / name).write_bytes(data)
    if case.error is not None:
        known["error"] = case.error
    else:
        known["tensors"] = [
            {key: value for key, value in asdict(tensor).items() if value is not False}
            for tensor in case.tensors or ()
        ]
    (folder / "case.json").write_text(_json(known), encoding="utf-8")


def _json(case: dict[str, Any]) -> str:
    """A key on each line, and a tensor on each line: short to read, and to compare."""
    lines = []
    for key, value in case.items():
        text = json.dumps(value, ensure_ascii=False)
        if key == "tensors" and value:
            entries = [json.dumps(tensor, ensure_ascii=False) for tensor in value]
            text = "[\n  " + ",\n  ".join(entries) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load_case(folder: Path) -> Case:
    """Read a case.

    Raises:
        BadCase: it lacks something, or says something unknown.
    """
    name = f"{folder.resolve().parent.name}/{folder.resolve().name}"
    try:
        known = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        known["parents"] = tuple(folder / parent for parent in known.get("parents", ()))
        if "base" in known:
            known["base"] = tuple(folder / path for path in known["base"])
        known["errata"] = tuple(known.get("errata", ()))
        if "tensors" in known:
            known["tensors"] = tuple(
                ExpectedTensor(**{**tensor, "shape": tuple(tensor["shape"])})
                for tensor in known["tensors"]
            )
        case = Case(name, folder / "stream.nnr", **known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCase(f"{folder}: {type(error).__name__}: {error}") from None
    _check(case)
    return case


def _check(case: Case) -> None:
    problems = []
    if case.evidence not in EVIDENCE:
        problems.append(f"evidence {case.evidence!r}")
    if (case.tensors is None) == (case.error is None) or case.error not in (None, *ERRORS):
        problems.append("it needs tensors, or an error that is one of: " + ", ".join(ERRORS))
    problems += [f"no file {p}" for p in case.files if not p.is_file()]
    if problems:
        raise BadCase(f"{case.name}: {'; '.join(problems)}")


def find_cases(wanted: Sequence[str], corpus: Path = CORPUS) -> list[Case]:
    """Load cases: folders of cases, or names or globs within `corpus`; all of it for none.

    Raises:
        BadCase: a case is damaged, or something wanted is not there.
    """
    folders = sorted(path.parent for path in corpus.glob("*/*/case.json"))
    if not wanted:
        return [load_case(folder) for folder in folders]
    chosen: dict[Path, None] = {}
    for text in wanted:
        here = sorted(path.parent for path in Path(text).rglob("case.json"))
        matching = [f for f in folders if _matches(f, text.rstrip("/"))]
        if not here and not matching:
            raise BadCase(f"{text}: no such case")
        chosen.update(dict.fromkeys(matching or here))
    return [load_case(folder) for folder in chosen]


def _matches(folder: Path, glob: str) -> bool:
    """Whether the glob names the case, with its category or without, or its category."""
    category, name = folder.parent.name, folder.name
    return any(fnmatch.fnmatchcase(t, glob) for t in (f"{category}/{name}", name, category))
