"""Streams drawn from the syntax: valid, reproducible, and decoded alike by both decoders."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

import nnr_codec
from conformance import generate, run
from conformance.suite.cases import describe
from conformance.suite.coverage import exercised, universe
from conformance.suite.educational import described

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two_threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("first", range(10_000, 10_200, 20))
def test_decoders_agree(first: int, common: bool, two_threads: Executor) -> None:
    for seed in range(first, first + 20):
        *parents, stream = generate.generate(seed, common=common)
        wanted = {t for t in described(stream, parents) if not t.factor}
        for executor in (None, two_threads):
            found = nnr_codec.decode(stream, parents=parents, executor=executor)
            assert set(describe(found)) == wanted, f"seed {seed}, common {common}"


def test_a_seed_decides() -> None:
    assert generate.generate(7) == generate.generate(7) != generate.generate(8)


def test_few_streams_exercise_nearly_everything() -> None:
    """But for contexts of rare magnitudes, which more seeds reach."""
    items = set()
    for seed in range(40):
        *parents, stream = generate.generate(seed)
        items |= exercised(stream, parents)
    rare = {
        item for item in universe() if item[0].startswith(("greater", "remainder", "RLPS", "STEP"))
    }
    left = universe() - rare - items
    assert len(left) < 30, sorted(left)


def test_nothing_of_the_codec_is_imported() -> None:
    code = "import sys, conformance.generate; print([n for n in sys.modules if 'nnr_codec' in n])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--seed", "3", "--count", "4", "-o", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"seed_{n}" for n in range(3, 7)]
    assert run.main([str(tmp_path)]) == 0
    assert "4 cases: 4 pass" in capsys.readouterr().out


def test_command_refuses_nonsense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        generate.main(["--count", "0", "-o", str(tmp_path)])
    (tmp_path / "file").write_text("")
    assert generate.main(["-o", str(tmp_path / "file" / "in")]) == 1
    assert "conformance.generate:" in capsys.readouterr().err
