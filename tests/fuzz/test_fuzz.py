"""Damaged bitstreams: nothing but BitstreamError comes out, within time and memory limits.

Every run makes the same mutants (seeded). Seeds are the peer's vectors where they are present, and
streams of our own that use what the vectors lack. A mutant that fails is printed in hex.
NNR_FUZZ_SECONDS gives time for more.
"""

from __future__ import annotations

import io
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from fuzz_support import Mutator, ShortReads, is_error, outcome, own_streams, seeds, timed, vector
from small_streams import small_streams

SECONDS = float(os.environ.get("NNR_FUZZ_SECONDS", "0"))

pytestmark = pytest.mark.filterwarnings("error")  # damage must not show as warnings of numpy


def test_the_seeds_decode() -> None:
    """What is damaged below is sound before."""
    good = [not is_error(outcome(stream)) for stream in seeds()]
    assert sum(good) >= len(own_streams())
    assert all(not is_error(outcome(stream)) for stream in own_streams())


@pytest.mark.skipif(not SECONDS, reason="NNR_FUZZ_SECONDS is not set")
def test_as_long_as_there_is_time(capsys: pytest.CaptureFixture[str]) -> None:
    """More mutants, of small streams of all kinds too; `NNR_FUZZ_SEED` gives others."""
    small = [stream.data for stream in small_streams().values()]
    mutator = Mutator(int(os.environ.get("NNR_FUZZ_SEED", "1000")), [*seeds(), *small, *small])
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        stream = mutator.mutant()
        found = timed(stream, lambda stream=stream: outcome(stream))
        outcomes[found[0].__name__ if is_error(found) else "decoded"] += 1
    with capsys.disabled():
        print(f"{outcomes.total()} mutants: {dict(outcomes)}")


@pytest.mark.parametrize("seed", range(4))
def test_damaged_streams(seed: int) -> None:
    """40 000 mutants, one by one; both ends must be met, or the mutants are no good."""
    mutator = Mutator(seed, seeds())
    outcomes: Counter[str] = Counter()
    for _ in range(10_000):
        stream = mutator.mutant()
        found = timed(stream, lambda stream=stream: outcome(stream))
        outcomes[found[0].__name__ if is_error(found) else "decoded"] += 1
    for name in ("decoded", "InvalidBitstream", "TruncatedBitstream", "UnsupportedFeature"):
        assert outcomes[name] >= 20, outcomes


def test_threads_find_the_same(pool: ThreadPoolExecutor) -> None:
    mutator = Mutator(100, seeds())
    for _ in range(3000):
        stream = mutator.mutant()
        alone = timed(stream, lambda stream=stream: outcome(stream))
        together = timed(stream, lambda stream=stream: outcome(stream, executor=pool))
        assert alone == together or (is_error(alone) and is_error(together)), stream.hex()


def test_sources_find_the_same() -> None:
    """A file, and a pipe that gives a few bytes per read, against the bytes themselves."""
    mutator = Mutator(200, seeds())
    for _ in range(600):
        stream = mutator.mutant()
        expected = outcome(stream)
        assert outcome(io.BytesIO(stream)) == expected, stream.hex()
        assert outcome(ShortReads(stream)) == expected, stream.hex()


@pytest.mark.parametrize("series", ["hist_tca", "hist_scan1", "update_codebook", "hist_urq"])
def test_damaged_series(series: str, pool: ThreadPoolExecutor) -> None:
    """A parent or the update itself is damaged, or streams are missing or in another order."""
    streams = [vector(f"{series}_{step}") for step in range(3)]
    assert not is_error(outcome(streams[-1], streams[:-1]))
    mutator = Mutator(300, streams)
    decoded = 0
    for _ in range(500):
        chain = list(streams)
        kind = mutator.random.randrange(4)
        if kind == 0:
            mutator.random.shuffle(chain)
        elif kind == 1:
            del chain[mutator.random.randrange(2)]
        else:
            chain[mutator.random.randrange(3)] = mutator.mutant()
        *parents, stream = chain
        alone = timed(stream, lambda s=stream, p=parents: outcome(s, p))
        together = outcome(stream, parents, pool)
        same = alone == together or (is_error(alone) and is_error(together))
        assert same, [data.hex() for data in chain]
        decoded += not is_error(alone)
    assert decoded > 10
