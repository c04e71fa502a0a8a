"""The evidence of the corpus: the reference does what it is said to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from peer import PYTHON_VARIABLE, Peer, PeerFailure

from conformance.suite.cases import find_cases
from conformance.suite.judging import PASS, Outcome, judge

pytestmark = pytest.mark.interop

KINDS = {"error": "refused", "crash": "crash", "hang": "time-out"}


def decoded(peer: Peer, stream: Path, parents: Sequence[Path]) -> Outcome:
    try:
        return Outcome("tensors", peer.decode(*(p.read_bytes() for p in (*parents, stream))))
    except PeerFailure as failure:
        return Outcome(KINDS[failure.kind], detail=failure.message)


def test_evidence_is_as_recorded() -> None:
    """Also that cases without have none: a changed reference, or a changed reading, shows."""
    python = os.environ.get(PYTHON_VARIABLE)
    if not python:
        pytest.skip(f"{PYTHON_VARIABLE} does not name the Python of an environment with nncodec")
    with Peer(python) as peer:
        for case in find_cases([]):
            if case.base is not None:  # what our model map says of streams, the reference ignores
                assert case.evidence == "text", case.name
                continue
            verdict = judge(case, decoded(peer, case.stream, case.parents))
            if case.error != "limit":  # lack of memory is no evidence
                assert (verdict.status == PASS) == (case.evidence == "peer"), verdict
