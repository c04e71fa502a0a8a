"""What came of a run, in short: what the cases rest on, and failures by section and cause."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from .cases import Case
from .judging import DISAGREEMENT, FAIL, Verdict

PEER = "NNCodec 2.1.3"
_OWN = ("refused", "crash", "time-out", "garbage")
"""What a detail begins with that goes on with the decoder's own words."""

_DIFFERENCES = {
    " is missing": "a tensor is missing",
    " is not expected": "a tensor too many",
    " has the shape ": "another shape",
    " has other values": "other values",
    ", expected ": "another element type",
}
_LONGEST_CAUSE = 70  # characters
_SHOWN = 5  # names of cases


def checked_against(cases: Sequence[Case]) -> str:
    """Say in a sentence what decides over these cases."""
    confirmed = sum(case.evidence == "peer" for case in cases)
    return (
        f"{len(cases)} cases, checked against {PEER}: with {confirmed} it does what is expected; "
        f"the other {len(cases) - confirmed} rest on our reading of the format (spec/bitstream.md)"
    )


def cause_of(verdict: Verdict) -> str:
    """Return what is wrong, in words that are the same for cases that fail in the same way."""
    kind, _, message = verdict.detail.partition(": ")
    if kind in _OWN:
        message = re.sub(r" \(exit code \d+\)$", "", message)
        general = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "…", message)
        return f"{kind}: {general[:_LONGEST_CAUSE]}"
    for words, cause in _DIFFERENCES.items():
        if words in verdict.detail:
            return cause
    return "accepted what must be refused"


def failures(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Yield a line for each section and cause of what did not pass, the most frequent first."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.status in (FAIL, DISAGREEMENT):
            key = (verdict.status, verdict.case.section, cause_of(verdict))
            groups[key].append(verdict.case.name)
    for (status, section, cause), names in sorted(groups.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        yield f"{len(names):4} {status:12} section {section}, {cause}: {shown}"
