"""Build the corpus anew: python -m conformance.build_corpus [--peer PYTHON]

Cases are made by hand (`feature_cases.py`, `limit_cases.py`, `invalid_cases.py`), drawn
(`generate.py`), or written by the reference (tests/golden/peer_vectors). What is expected comes
from spec/educational_decoder.py. With --peer the reference is asked, as a black box, to decode each
case: where it does what is expected the evidence is "peer", and elsewhere "text", with a note of
what it did. Without --peer that is kept for cases that have not changed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .generate import generated_case
from .generator.contents_cases import contents_cases
from .generator.feature_cases import Draft, feature_cases
from .generator.invalid_cases import invalid_cases
from .generator.limit_cases import issue_cases, limit_cases
from .generator.update_cases import update_cases
from .suite.cases import CORPUS, BadCase, CaseFiles, load_case, write_case
from .suite.decoders import command
from .suite.educational import described
from .suite.judging import DISAGREEMENT, FAIL, NOT_RUN, Decoder, judge
from .suite.summary import PEER

VECTORS = Path(__file__).parents[1] / "tests" / "golden" / "peer_vectors"
LARGEST_VECTOR = 6000  # bytes; the larger ones exercise nothing else
SEEDS, COMMON_SEEDS = range(60), range(40)
LARGEST_DRAWN = 3000  # bytes
PEER_SECONDS = 60.0
_LONGEST_NOTE = 160  # characters


def drafts() -> Iterator[Draft]:
    """All cases, with what they expect."""
    valid = (vector_cases, feature_cases, limit_cases, issue_cases, drawn_cases)
    for source in (*valid, invalid_cases, update_cases, contents_cases):
        for name, files in source():
            yield name, completed(name, files)


def completed(name: str, files: CaseFiles) -> CaseFiles:
    """Add the tensors; check that what must be refused is.

    Raises:
        BadCase: the educational decoder does not do what the case expects.
    """
    if files.base is not None:  # that decoder does not know them
        return files
    try:
        tensors = described(files.stream, _parents(name, files))
    except ValueError as error:
        if files.error is None:
            raise BadCase(f"{name}: {error}") from None
        return files
    if files.error is not None:
        raise BadCase(f"{name}: not refused")
    return replace(files, tensors=tensors)


def _parents(name: str, files: CaseFiles) -> list[bytes]:
    """Return the earlier streams of a case's series; its own folder may not be there yet."""
    return [
        p if isinstance(p, bytes) else Path(os.path.normpath(CORPUS / name / p)).read_bytes()
        for p in files.parents
    ]


def vector_cases() -> Iterator[Draft]:
    """The bitstreams that the reference wrote; parents are the earlier cases of their series."""
    entries = json.loads((VECTORS / "index.json").read_text())
    series = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.get("step", 0)):
        if "series" in entry:
            series[entry["series"]].append(entry["name"])
    for entry in entries:
        name = entry["name"]
        stream = (VECTORS / f"{name}.nnc").read_bytes()
        if len(stream) > LARGEST_VECTOR:
            continue
        earlier = series.get(entry.get("series"), [])
        parents = [f"../{p}/stream.nnr" for p in earlier[: entry.get("step", 0)]]
        options = ", ".join(f"{k}={v}" for k, v in entry["options"].items()) or "default options"
        text = f"written by {PEER}: {options}"
        errata = ("E20",) if entry["options"].get("decomposed") else ()
        yield f"data/{name}", CaseFiles(stream, text, "2-14", parents=parents, errata=errata)


def drawn_cases() -> Iterator[Draft]:
    """A selection of random streams."""
    for common, seeds in ((True, COMMON_SEEDS), (False, SEEDS)):
        for seed in seeds:
            files = generated_case(seed, common)
            if len(files.stream) + sum(map(len, files.parents)) <= LARGEST_DRAWN:
                yield f"features/random_{'common_' * common}{seed:02}", files


def ask_peer(folder: Path, peer: Decoder) -> tuple[str, str]:
    """Return evidence and note of a case that was written with none."""
    case = load_case(folder)
    outcome = peer(case.stream, case.parents, case.base)
    verdict = judge(case, outcome)
    if verdict.status == NOT_RUN:
        return "text", ""
    if verdict.status not in (FAIL, DISAGREEMENT):
        # That it lacks the memory for a bomb says nothing about what others have to bear.
        return ("text", "") if case.error == "limit" else ("peer", "")
    return "text", f"{PEER}: {verdict.detail}"[:_LONGEST_NOTE]


def kept_evidence(folder: Path, files: CaseFiles) -> tuple[str, str]:
    """Return those of the case that is there now, if it is the same."""
    try:
        case = load_case(folder)
    except BadCase:
        return "text", ""
    parents = [path.read_bytes() for path in case.parents]
    tensors = None if files.error else tuple(files.tensors or ())
    base = None if case.base is None else [path.read_bytes() for path in case.base]
    wanted = (files.stream, _parents(case.name, files), files.base, tensors, files.error)
    same = (case.stream.read_bytes(), parents, base, case.tensors, case.error) == wanted
    return (case.evidence, case.note) if same else ("text", "")


def build(peer: Decoder | None) -> int:
    """Write all cases, and remove those that are no longer made; return their number."""
    made = set()
    for name, files in drafts():
        folder = CORPUS / name
        made.add(folder)
        evidence, note = kept_evidence(folder, files)
        if peer is not None:
            with tempfile.TemporaryDirectory(dir=CORPUS) as scratch:
                trial = Path(scratch, "case")
                write_case(trial, replace(files, parents=_parents(name, files)))
                evidence, note = ask_peer(trial, peer)
        if folder.exists():
            shutil.rmtree(folder)
        write_case(folder, replace(files, evidence=evidence, note=note))
    for path in CORPUS.glob("*/*"):
        if path not in made:
            shutil.rmtree(path)
    return len(made)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("conformance.build_corpus", description="Build the corpus.")
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with the reference")
    given = parser.parse_args(arguments)
    peer = None
    if given.peer:
        script = Path(__file__).with_name("peer_decoder.py")
        words = [given.peer, str(script), "{in}", "{out}", "{parents}"]
        peer = command(shlex.join(words), PEER_SECONDS)
    CORPUS.mkdir(exist_ok=True)
    try:
        print(f"{build(peer)} cases in {CORPUS}")
    except BadCase as error:
        print(f"conformance.build_corpus: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
