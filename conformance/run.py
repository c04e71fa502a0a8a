"""Judge a decoder by the conformance corpus.

    python -m conformance.run                                     # nnr_codec itself
    python -m conformance.run --decoder educational
    python -m conformance.run --decoder 'mydecoder {in} {parents} {out} --base={base}' --jobs 4

Exit codes: 0 the decoder passes, 1 it does not, 2 wrong usage. See conformance/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from .suite import decoders
from .suite.cases import BadCase, Case, find_cases
from .suite.coverage import Item, exercised, group_of, missing, universe
from .suite.judging import DISAGREEMENT, FAIL, NOT_RUN, PASS, Verdict, judge_all
from .suite.summary import cause_of, checked_against, failures

OURS = {"nnr_codec": decoders.nnr_codec_decoder, "educational": decoders.educational}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    if not 1 <= given.jobs <= 256:
        parser.error("--jobs is 1 to 256")
    if not 0 < given.timeout < 1e6:
        parser.error("--timeout is more than 0")
    try:
        cases = find_cases(given.cases)
        if given.coverage:
            return show_coverage(cases, given.json)
        return show_verdicts(cases, given)
    except (BadCase, decoders.BadCommand) as error:
        print(f"conformance.run: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("conformance.run: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conformance.run", description="Judge a decoder by the conformance corpus."
    )
    cases = "folders of cases, or names, categories, globs in the corpus; all of it by default"
    parser.add_argument("cases", nargs="*", metavar="CASE", help=cases)
    text = "a command with {in}, {out}, {parents}, {base}; or nnr_codec (default), educational"
    parser.add_argument("--decoder", default="nnr_codec", metavar="CMD", help=text)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="side by side")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds a command has"
    )
    text = "cases that rest on our reading alone judge too; so for nnr_codec and educational"
    parser.add_argument("--strict", action="store_true", help=text)
    parser.add_argument(
        "--coverage", action="store_true", help="what the cases exercise; runs none"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each case")
    return parser


def show_verdicts(cases: Sequence[Case], given: argparse.Namespace) -> int:
    """Judge, and print what came of it; return the exit code."""
    ours = OURS.get(given.decoder)
    decoder = ours() if ours else decoders.command(given.decoder, given.timeout)
    strict = given.strict or ours is not None
    verdicts = []
    if not given.json:
        print(checked_against(cases), flush=True)
    for verdict in judge_all(cases, decoder, strict=strict, jobs=given.jobs):
        verdicts.append(verdict)
        if not given.json and (given.verbose or verdict.status in (FAIL, DISAGREEMENT)):
            print(_line(verdict), flush=True)
    counts = Counter(verdict.status for verdict in verdicts)
    totals = {status: counts[status] for status in (PASS, FAIL, DISAGREEMENT, NOT_RUN)}
    if given.json:
        verdict_rows = [_as_json(verdict) for verdict in verdicts]
        report = {"corpus": checked_against(cases), "counts": totals, "cases": verdict_rows}
        print(json.dumps(report, ensure_ascii=False, indent=1))
    else:
        for line in failures(verdicts):
            print(line)
        parts = [f"{count} {status}" for status, count in totals.items()]
        print(f"{len(verdicts)} cases: {', '.join(parts)}")
    return 1 if counts[FAIL] else 0


def _line(verdict: Verdict) -> str:
    """A case in a line or two: what came of it, why, and what the case is."""
    case, mark = verdict.case, verdict.status.upper()
    if verdict.status == PASS:
        return f"{mark:12} {case.name}"
    points = f" ({', '.join(case.errata)})" if case.errata else ""
    about = f"{'':12} it exercises: {case.exercises}; section {case.section}{points}"
    return f"{mark:12} {case.name}: {verdict.detail}\n{about}"


def _as_json(verdict: Verdict) -> dict[str, object]:
    case, known = verdict.case, {"status": verdict.status, "detail": verdict.detail}
    if verdict.status in (FAIL, DISAGREEMENT):
        known["cause"] = cause_of(verdict)
    about = {"section": case.section, "evidence": case.evidence, "errata": case.errata}
    return {"case": case.name, **known, **about}


def show_coverage(cases: Sequence[Case], as_json: bool) -> int:
    """Print which cases exercise what; return the exit code, 1 if something is never exercised."""
    matrix = coverage_matrix(cases)
    gaps = missing(matrix)
    if as_json:
        rows = {f"{group}: {text}": names for (group, text), names in sorted(matrix.items())}
        print(json.dumps({"items": rows, "missing": gaps}, ensure_ascii=False, indent=1))
    else:
        _print_table(matrix)
        for group, text in gaps:
            print(f"NOT EXERCISED  {group}: {text}")
        print(f"{len(universe()) - len(gaps)} of {len(universe())} items exercised")
    return 1 if gaps else 0


def coverage_matrix(cases: Sequence[Case]) -> dict[Item, list[str]]:
    """The names of the cases that exercise each item. Streams that are invalid do not count."""
    matrix: dict[Item, list[str]] = {}
    for case in cases:
        if case.name.startswith("invalid/") or case.base is not None:
            continue
        parents = [path.read_bytes() for path in case.parents]
        for item in exercised(case.stream.read_bytes(), parents) & universe():
            matrix.setdefault(item, []).append(case.name)
    return matrix


def _print_table(matrix: Mapping[Item, Sequence[str]]) -> None:
    """A row for each syntax element and group of contexts: items, and the cases with any."""
    totals = Counter(map(group_of, universe()))
    hit = Counter(group_of(item) for item in matrix)
    cases: dict[str, set[str]] = {}
    for item, item_cases in matrix.items():
        cases.setdefault(group_of(item), set()).update(item_cases)
    print(f"{'exercised':46} {'items':>11} {'cases':>5}  for instance")
    for group, total in sorted(totals.items()):
        names = cases.get(group, set())
        example = min(names, key=lambda name: (len(name), name), default="")
        print(f"{group:46} {hit[group]:>4} of {total:>3} {len(names):>5}  {example}")


if __name__ == "__main__":
    sys.exit(main())
