"""What decoding many streams comes to, and how much memory it takes: all of a process's.

Measured in a process of its own, as ``tracemalloc`` sees Python's and numpy's memory alone, and not
the core's. Started as a program, this module reads its work from standard input.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import nnr_codec
from nnr_codec import DecodeLimits
from nnr_codec.errors import BitstreamError


class Work(NamedTuple):
    """Streams to decode one by one.

    Attributes:
        name: what it is called in results.
        streams: the streams; or one stream, if `damage` says which parts of it to change.
        parents: the earlier streams of the series.
        damage: "" for none; "bits": every truncation and every flip of a bit; "bytes": every
            truncation, and every value of every byte.
        reading: "decode"; or "all": also as a pipe, by `open`, and by its headers.
    """

    name: str
    streams: Sequence[bytes]
    parents: Sequence[bytes] = ()
    damage: str = ""
    reading: str = "decode"


@dataclass
class Result:
    """What came of a piece of work.

    Attributes:
        outcomes: how often decoding ended with each type of error, or with "decoded".
        failures: streams in hexadecimal, with an error that is none of a bitstream.
        peak: bytes by which the process's memory at most grew.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    peak: int = 0


def measured(
    works: Sequence[Work], limits: DecodeLimits, timeout: float = 120
) -> dict[str, Result]:
    """Do all of the work in a process of its own; return the results by name."""
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__],
        input=pickle.dumps((list(map(tuple, works)), limits)),
        env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    found = json.loads(done.stdout)
    return {
        name: Result(Counter(result["outcomes"]), result["failures"], result["peak"])
        for name, result in found.items()
    }


def damaged(work: Work) -> Iterator[bytes]:
    """Yield the streams of a piece of work."""
    if not work.damage:
        yield from work.streams
        return
    (stream,) = work.streams
    for length in range(len(stream)):
        yield stream[:length]
    changes = [1 << bit for bit in range(8)] if work.damage == "bits" else range(1, 256)
    changed = bytearray(stream)
    for position in range(len(stream)):
        for change in changes:
            changed[position] ^= change
            yield bytes(changed)
            changed[position] ^= change


def _read(stream: bytes, work: Work, limits: DecodeLimits) -> None:
    from fuzz_support import ShortReads

    from nnr_codec.decoding.stream_decoder import StreamDecoder

    if work.reading == "all":
        for read in (
            lambda: nnr_codec.decode(ShortReads(stream), parents=work.parents, limits=limits),
            lambda: dict(nnr_codec.open(stream, parents=work.parents, limits=limits)),
            lambda: list(StreamDecoder(limits=limits).outline(stream, "factorized")),
            lambda: nnr_codec.open(stream, limits=limits).info(),
        ):
            with suppress(BitstreamError):
                read()
    nnr_codec.decode(stream, parents=work.parents, limits=limits)


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # where the number that getrusage gives begins with that of the parent
        lines = status.read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _done(work: Work, limits: DecodeLimits) -> Result:
    result, before = Result(), _peak()
    for stream in damaged(work):
        outcome = "decoded"
        try:
            _read(stream, work, limits)
        except BitstreamError as error:
            outcome = type(error).__name__
        except BaseException as error:
            outcome = "failure"
            result.failures.append(f"{error!r} from {stream.hex()[:4000]}")
        result.outcomes[outcome] += 1
    result.peak = _peak() - before
    return result


def main() -> None:
    """Do what standard input says, and print the results as JSON."""
    warnings.simplefilter("error")  # damage must not show as warnings of numpy
    works, limits = pickle.load(sys.stdin.buffer)
    pieces = [Work(*work) for work in works]
    for work in pieces:  # so that what is loaded late does not count
        if work.damage:
            _done(Work(work.name, work.streams, work.parents, reading=work.reading), limits)
    ends = [stream[:-1] for work in pieces for stream in work.streams if work.damage]
    _done(Work("damaged", [b"\0", *ends]), limits)
    results = {work.name: vars(_done(work, limits)) for work in pieces}
    print(json.dumps(results))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
