"""The suite catches decoders that are wrong in one place."""

from __future__ import annotations

from functools import cache

import pytest
from mutants import MUTANTS, Mutant

from conformance.suite import educational
from conformance.suite.cases import Case, find_cases
from conformance.suite.decoders import educational as judged_decoder
from conformance.suite.judging import FAIL, PASS, judge, judge_all

SOURCE = educational.PATH.read_text(encoding="utf-8")


@cache
def cases() -> list[Case]:
    """The small ones first, so that mutants are caught early."""
    known = [case for case in find_cases([]) if case.base is None]
    return sorted(known, key=lambda case: case.stream.stat().st_size)


def mutated(mutant: Mutant) -> str:
    assert SOURCE.count(mutant.old) == 1, f"the source has changed: {mutant.old!r}"
    return SOURCE.replace(mutant.old, mutant.new)


def first_failure(mutant: Mutant) -> str | None:
    """The name of the first case that the mutant fails."""
    decoder = judged_decoder(educational.load(mutated(mutant)))
    for case in cases():
        verdict = judge(case, decoder(case.stream, case.parents), strict=True)
        if verdict.status == FAIL:
            return case.name
    return None


def test_the_decoder_as_it_is_passes() -> None:
    verdicts = judge_all(cases(), judged_decoder(educational.load(SOURCE)), strict=True)
    assert {verdict.status for verdict in verdicts} == {PASS}


def test_mutants_have_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) > 50


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_caught(mutant: Mutant) -> None:
    assert first_failure(mutant) is not None
