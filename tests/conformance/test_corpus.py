"""The corpus is whole: its definition, its files and its coverage agree; and our decoders pass."""

from __future__ import annotations

import re
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import nnr_codec
from conformance.build_corpus import VECTORS, drafts
from conformance.run import coverage_matrix
from conformance.suite.cases import (
    CATEGORIES,
    CORPUS,
    Case,
    CaseFiles,
    ExpectedTensor,
    describe,
    find_cases,
)
from conformance.suite.coverage import ELEMENTS, missing

SPEC = Path(__file__).parents[2] / "spec"
LARGEST_CORPUS = 3_000_000  # bytes
KINDS = {
    nnr_codec.InvalidBitstream: "invalid",
    nnr_codec.TruncatedBitstream: "truncated",
    nnr_codec.UnsupportedFeature: "unsupported",
    nnr_codec.LimitExceeded: "limit",
    nnr_codec.MissingParent: "missing parent",
    nnr_codec.WrongBase: "wrong base",
}


@cache
def cases() -> dict[str, Case]:
    return {case.name: case for case in find_cases([])}


@cache
def defined() -> dict[str, CaseFiles]:
    return dict(drafts())


def test_every_category_has_cases() -> None:
    found = {name.split("/")[0] for name in cases()}
    assert found == set(CATEGORIES) == {path.name for path in CORPUS.iterdir()}
    assert len(cases()) > 400


def test_no_file_is_astray() -> None:
    wanted = {case.stream.with_name("case.json") for case in cases().values()}
    for case in cases().values():
        wanted |= {path.resolve() for path in case.files}
    files = {path for path in CORPUS.rglob("*") if not path.is_dir()}
    assert files == wanted
    assert sum(path.stat().st_size for path in files) < LARGEST_CORPUS


def test_the_cases_are_those_defined() -> None:
    """Streams, what is expected of them, and words; the evidence is the reference's."""
    assert cases().keys() == defined().keys()
    for name, files in defined().items():
        case = cases()[name]
        assert case.stream.read_bytes() == files.stream, name
        parents = [
            p if isinstance(p, bytes) else (CORPUS / name / p).read_bytes() for p in files.parents
        ]
        assert [path.read_bytes() for path in case.parents] == parents, name
        base = None if case.base is None else [path.read_bytes() for path in case.base]
        assert base == files.base, name
        assert case.tensors == (None if files.error else tuple(files.tensors or ())), name
        found = (case.error, case.exercises, case.section, case.errata)
        assert found == (files.error, files.exercises, files.section, tuple(files.errata)), name


def test_everything_is_exercised() -> None:
    left = set(missing(()))
    for case in sorted(cases().values(), key=lambda case: case.stream.stat().st_size):
        if left:  # a few hundred small ones will do
            left -= coverage_matrix([case]).keys()
    assert sorted(left) == []


def test_the_elements_are_those_of_the_document() -> None:
    """The names in the first column of the tables in the sections about syntax."""
    text = (SPEC / "bitstream.md").read_text(encoding="utf-8")
    syntax = text[text.index("\n## 2 ") : text.index("\n## 6 ")]
    syntax += text[text.index("\n## 13 ") : text.index("\n## 14 ")]
    found: set[str] = set()
    for line in syntax.splitlines():
        cells = line.strip("|").split("|")
        if not line.startswith("| ") or "(" not in cells[-1].replace("()", ""):
            continue
        for cell in cells[:-1]:
            named = cell.split(",")[0] if " if " in cell or "," in cell else cell
            found |= set(re.findall(r"`([a-z][a-z0-9_]*)(?:\[[^`]*\])?`", named)[:1])
    found -= {"value"}  # of a codebook, which has no names for its differences
    assert len(found) > 70
    assert found - ELEMENTS.keys() - {"zero_offset", "align"} == set()


def test_points_of_the_errata_exist() -> None:
    text = (SPEC / "errata.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\*\*(E\d+)[ *]", text, re.MULTILINE))
    assert {point for case in cases().values() for point in case.errata} <= known


def test_notes_go_with_cases_without_evidence() -> None:
    assert not [case.name for case in cases().values() if case.note and case.evidence == "peer"]
    counts = {kind: sum(c.evidence == kind for c in cases().values()) for kind in ("peer", "text")}
    assert counts["peer"] > counts["text"] > 100


def test_what_the_reference_decoded_is_expected() -> None:
    """Its own tensors, that the golden vectors have, not the educational decoder's."""
    compared = 0
    for name, case in cases().items():
        if not name.startswith("data/"):
            continue
        with np.load(VECTORS / f"{case.stream.parent.name}.npz") as archive:
            tensors = {n: v.astype("f4") if v.dtype == "f8" else v for n, v in archive.items()}
        expected = {tensor.name: tensor.sha256 for tensor in case.tensors or ()}
        assert {t.name: t.sha256 for t in describe(tensors)} == expected, name
        compared += 1
    assert compared > 100


def decoded(case: Case, executor: Executor | None) -> set[ExpectedTensor] | str:
    """The tensors, or the kind of the error."""
    try:
        base = case.base or ()
        found = nnr_codec.decode(case.stream, parents=case.parents, base=base, executor=executor)
    except nnr_codec.BitstreamError as error:
        return KINDS[type(error)]
    return set(describe(found))


@pytest.mark.parametrize("threads", [1, 2])
def test_our_decoder(threads: int) -> None:
    """Exactly: dtypes, and the kinds of errors too."""
    with ThreadPoolExecutor(threads) as pool:
        for name, case in cases().items():
            found = decoded(case, pool if threads > 1 else None)
            wanted = {tensor for tensor in case.tensors or () if not tensor.factor}
            assert found == (case.error or wanted), name
