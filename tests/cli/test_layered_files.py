"""Quality layers on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_support import DIGITS, Run

import nnr_codec
from nnr_codec.cli._common import BAD_BITSTREAM, USAGE


@pytest.fixture
def layered(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "layered.nnr"
    arguments = ["--quality-layers", 3, "--qp", -30, "--verify"]
    assert run("nnr-encode", DIGITS, "-o", path, *arguments).code == 0
    return path


def test_some_layers_of_a_file(run: Run, layered: Path, tmp_path: Path) -> None:
    for quality in ("1", "2", "3", None):
        options = [] if quality is None else ["--quality", quality]
        outcome = run("nnr-decode", layered, "-o", tmp_path / "out.npz", "-f", *options)
        assert outcome.code == 0
        expected = nnr_codec.decode(layered, quality=None if quality is None else int(quality))
        with np.load(tmp_path / "out.npz") as decoded:
            assert list(decoded) == list(expected)
            assert all(np.array_equal(decoded[name], expected[name]) for name in expected)


def test_info_lists_them(run: Run, layered: Path) -> None:
    sizes = json.loads(run("nnr-info", layered, "--json").out)["quality_layers"]
    assert len(sizes) == 3
    assert sum(sizes) == layered.stat().st_size
    ends = f"{sizes[0]}, {sizes[0] + sizes[1]}, {sum(sizes)}"
    assert f"3 quality layers, up to byte {ends}\n" in run("nnr-info", layered).out
    units = json.loads(run("nnr-info", layered, "--json", "--units").out)["unit_list"]
    assert sum(unit["unit"].endswith("(NNR_STR)") for unit in units) == 3
    some = json.loads(run("nnr-info", layered, "--json", "--quality", 2).out)
    assert some["quality_layers"] == sizes[:2]


def test_the_digest_is_that_of_what_is_taken(run: Run, layered: Path, tmp_path: Path) -> None:
    digests = [run("nnr-info", layered, "--digest", "--quality", q).out for q in (1, 3)]
    assert digests[0] != digests[1]
    assert run("nnr-info", layered, "--digest").out == digests[1]
    verify = ["--quality", 1, "--verify", digests[0].strip()]
    assert run("nnr-decode", layered, "-o", tmp_path / "out.npz", *verify).code == 0


def test_a_cut_file(run: Run, layered: Path, tmp_path: Path) -> None:
    data = layered.read_bytes()
    expected = nnr_codec.decode(data, quality=2)
    layered.write_bytes(data[:-1])
    outcome = run("nnr-decode", layered, "-o", tmp_path / "out.npz")
    assert outcome.code == 0
    reason = f"{layered} is cut: quality layers from number 3 on, of 3, are left out"
    assert outcome.err == f"nnr-decode: warning: {reason}\n"
    with np.load(tmp_path / "out.npz") as decoded:
        assert all(np.array_equal(decoded[name], expected[name]) for name in expected)
    layered.write_bytes(data[:100])
    outcome = run("nnr-decode", layered, "-o", tmp_path / "other.npz")
    assert outcome.code == BAD_BITSTREAM
    assert not (tmp_path / "other.npz").exists()


def test_more_layers_than_there_are(run: Run, layered: Path, tmp_path: Path) -> None:
    outcome = run("nnr-decode", layered, "-o", tmp_path / "out.npz", "--quality", 4)
    assert outcome.code == USAGE
    assert "has 3 quality layers" in outcome.err
    outcome = run("nnr-encode", layered, "-o", tmp_path / "x.nnr", "--quality-layers", 9)
    assert outcome.code == USAGE
