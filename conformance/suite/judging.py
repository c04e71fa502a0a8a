"""Judging a decoder: what it did with a case, and what that is worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .cases import Case, ExpectedTensor, digest
from .educational import first_difference

PASS, FAIL, DISAGREEMENT, NOT_RUN = "pass", "fail", "disagreement", "not run"

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Outcome:
    """What a decoder did with a stream.

    Attributes:
        kind: "tensors" if it gave some; "refused"; "crash", "time-out" or "garbage" (of its output)
            if something is wrong with the decoder itself; "not run".
        tensors: what it gave.
        detail: its message, or what is wrong.
    """

    kind: str
    tensors: Tensors = field(default_factory=dict)
    detail: str = ""


class Decoder(Protocol):
    """What is judged."""

    def __call__(
        self, stream: Path, parents: Sequence[Path], base: Sequence[Path] | None = None
    ) -> Outcome:
        """Decode a stream, given its parents or, of an update by the model map, its base; raise
        nothing that concerns the stream."""


@dataclass(frozen=True)
class Verdict:
    """Of one case. `status` is PASS, FAIL, DISAGREEMENT or NOT_RUN; `detail` says why."""

    case: Case
    status: str
    detail: str = ""


def judge(case: Case, outcome: Outcome, strict: bool = False) -> Verdict:
    """Compare an outcome with what the case expects.

    Where a case has no evidence but the text, a difference is a disagreement and no failure,
    unless `strict`.
    """
    if outcome.kind == "not run":
        return Verdict(case, NOT_RUN, outcome.detail)
    problem = _problem(case, outcome, strict)
    if problem is None:
        return Verdict(case, PASS)
    binding = strict or case.evidence == "peer"
    return Verdict(case, FAIL if binding else DISAGREEMENT, problem)


def _problem(case: Case, outcome: Outcome, strict: bool) -> str | None:
    if outcome.kind in ("crash", "time-out", "garbage"):
        return f"{outcome.kind}: {outcome.detail}"
    if case.tensors is None:
        if outcome.kind == "refused":
            return None
        return f"accepted; it must be refused ({case.error})"
    if outcome.kind == "refused":
        return f"refused: {outcome.detail}"
    return tensor_differences(case.tensors, outcome.tensors, exact_types=strict)


def tensor_differences(
    expected: Iterable[ExpectedTensor], tensors: Tensors, exact_types: bool
) -> str | None:
    """Say how tensors differ from those expected; None if they do not. Their order is free.

    Without `exact_types` a wider type of the same kind will do, if its values, converted, are those
    expected.
    """
    problems = []
    by_name = {tensor.name: tensor for tensor in expected}
    for name, tensor in by_name.items():
        if name in tensors:
            problems += _difference(tensor, tensors[name], exact_types)
        elif not tensor.factor:
            problems.append(f"{name!r} is missing")
    problems += [f"{name!r} is not expected" for name in tensors if name not in by_name]
    more = len(problems) - 3
    return "; ".join(problems[:3]) + (f"; {more} more" if more > 0 else "") or None


def _difference(tensor: ExpectedTensor, values: npt.NDArray[Any], exact_type: bool) -> list[str]:
    name = repr(tensor.name)
    if values.shape != tensor.shape:
        return [f"{name} has the shape {values.shape}, expected {tensor.shape}"]
    wanted = np.dtype(tensor.dtype)
    wider = values.dtype.kind == wanted.kind and values.dtype.itemsize > wanted.itemsize
    if values.dtype.name != tensor.dtype and (exact_type or not wider):
        return [f"{name} is {values.dtype.name}, expected {tensor.dtype}"]
    with np.errstate(all="ignore"):
        same = digest(values.astype(wanted)) == tensor.sha256
    return [] if same else [f"{name} has other values"]


def judge_all(
    cases: Sequence[Case], decoder: Decoder, *, strict: bool = False, jobs: int = 1
) -> Iterator[Verdict]:
    """Judge a decoder by all cases, `jobs` at a time; yield in the order of the cases.

    Where tensors are not those expected, the detail has the first difference as well.
    """

    def judged(case: Case) -> Verdict:
        outcome = decoder(case.stream, case.parents, case.base)
        verdict = judge(case, outcome, strict)
        if verdict.status in (FAIL, DISAGREEMENT) and outcome.tensors and case.tensors:
            more = first_difference(case, outcome.tensors)
            verdict = replace(verdict, detail=verdict.detail + (f"; {more}" if more else ""))
        return verdict

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(judged, cases)
