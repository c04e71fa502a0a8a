"""The command nnrdec."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import update_streams
from device_support import DEVICE, HostBuild, read_folder, run, tool
from small_streams import small_streams

import nnr_codec
from conformance.suite.cases import find_cases
from conformance.suite.decoders import command
from conformance.suite.judging import PASS, judge_all

DONE, FAILURE, USAGE, BAD_BITSTREAM = 0, 1, 2, 3


def nnrdec(host: HostBuild, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = run(host.command, *arguments, text=True)
    return done


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    path = tmp_path / "in.nnr"
    path.write_bytes(small_streams()["ties and empties"].data)
    return path


def test_the_conformance_suite(host: HostBuild) -> None:
    """But for a base of another digest: it does not form the digest of a model."""
    line = f"{host.command} {{in}} -o {{out}} --parent={{parents}} --base={{base}}"
    verdicts = list(judge_all(find_cases([]), command(line), strict=True, jobs=2))
    assert len(verdicts) > 500
    failed = [verdict.case.name for verdict in verdicts if verdict.status != PASS]
    assert failed == ["updates/another_model"]


def test_tensors_and_their_list(host: HostBuild, stream: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert nnrdec(host, stream, "-o", out).returncode == DONE
    listed = {entry["name"]: entry for entry in json.loads((out / "tensors.json").read_text())}
    wanted = nnr_codec.decode(str(stream))
    assert set(listed) == set(wanted) == {"a", "b", "e", "t"}
    for name, entry in listed.items():
        values = np.fromfile(out / entry["file"], np.dtype(entry["dtype"]).newbyteorder("<"))
        assert np.array_equal(values.reshape(entry["shape"]), wanted[name])
    assert listed["t"]["file"] == listed["a"]["file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.nnr", "out"]


def test_a_stream_without_tensors(host: HostBuild, tmp_path: Path) -> None:
    (tmp_path / "in.nnr").write_bytes(bytes.fromhex("00040200"))
    assert nnrdec(host, tmp_path / "in.nnr", "--output", tmp_path / "out").returncode == DONE
    assert json.loads((tmp_path / "out" / "tensors.json").read_text()) == []


def test_a_name_that_json_must_escape(host: HostBuild, tmp_path: Path) -> None:
    name = 'a"\\\n/é\x01'
    options = nnr_codec.EncodeOptions(qp=-4)
    data = nnr_codec.encode({name: np.ones((3, 4), np.float32)}, options=options).data
    (tmp_path / "in.nnr").write_bytes(data)
    assert nnrdec(host, tmp_path / "in.nnr", "-o", tmp_path / "out").returncode == DONE
    (entry,) = json.loads((tmp_path / "out" / "tensors.json").read_text())
    assert entry["name"] == name


@pytest.mark.parametrize("size", [0, 2, 30, -1])
def test_damage_leaves_nothing(host: HostBuild, stream: Path, tmp_path: Path, size: int) -> None:
    stream.write_bytes(stream.read_bytes()[:size])
    done = nnrdec(host, stream, "-o", tmp_path / "out")
    assert done.returncode == BAD_BITSTREAM
    assert done.stderr.startswith(f"nnrdec: {stream}: unit ")
    assert [path.name for path in tmp_path.iterdir()] == ["in.nnr"]


def test_what_exists_stays(host: HostBuild, stream: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert nnrdec(host, stream, "-o", out).returncode == USAGE
    assert list(out.iterdir()) == []


def test_usage(host: HostBuild, stream: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for arguments in (
        [],
        [str(stream)],
        ["-o", out],
        [str(stream), "-o"],
        [str(stream), "-o", out, "--layers", "some"],
        [str(stream), "-o", out, "--unknown"],
        [str(stream), str(stream), "-o", out],
    ):
        assert nnrdec(host, *arguments).returncode == USAGE, arguments
    assert nnrdec(host, tmp_path / "none.nnr", "-o", out).returncode == FAILURE
    assert not Path(out).exists()
    assert "usage: nnrdec" in nnrdec(host, "--help").stdout


def test_a_series(host: HostBuild, tmp_path: Path) -> None:
    update = small_streams()["update"]
    (tmp_path / "update.nnr").write_bytes(update.data)
    (tmp_path / "parent.nnr").write_bytes(update.parents[0])
    without = nnrdec(host, tmp_path / "update.nnr", "-o", tmp_path / "out")
    assert without.returncode == BAD_BITSTREAM
    assert "in no earlier bitstream" in without.stderr
    parent = f"--parent={tmp_path / 'parent.nnr'}"
    assert nnrdec(host, tmp_path / "update.nnr", parent, "-o", tmp_path / "out").returncode == DONE
    wrong = f"--parent={tmp_path / 'none.nnr'}"
    assert nnrdec(host, tmp_path / "update.nnr", wrong, "-o", tmp_path / "o").returncode == FAILURE


@pytest.mark.sanitizer
def test_cmake_builds_it(tmp_path: Path, stream: Path) -> None:
    """The line of the README, every option away from its default."""
    cmake = tool("cmake")
    if cmake is None:
        pytest.skip("no cmake")
    switches = [f"-DNNR_{name}=OFF" for name in ("FLOATS", "DC", "UPDATES", "MAP", "TEXTS")]
    configure = (cmake, "-S", DEVICE, "-B", tmp_path / "b", "-DCMAKE_BUILD_TYPE=MinSizeRel")
    done = run(*configure, *switches, "-DNNR_SMALL_TABLES=ON", text=True)
    if done.returncode and "CMAKE_MAKE_PROGRAM" in done.stderr:
        pytest.skip("cmake finds no make")
    assert done.returncode == 0, done.stderr
    done = run(cmake, "--build", tmp_path / "b", "-j2", text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done = run(tmp_path / "b" / "nnrdec", stream, "-o", tmp_path / "out", text=True)
    assert done.returncode == DONE, done.stderr


@pytest.fixture
def layered(tmp_path: Path) -> Path:
    path = tmp_path / "layered.nnr"
    path.write_bytes(update_streams.layered())
    return path


def same(folder: Path, wanted: Mapping[str, Any]) -> bool:
    found = read_folder(folder)
    return set(found) == set(wanted) and all(
        found[n].dtype == wanted[n].dtype and np.array_equal(found[n], wanted[n]) for n in wanted
    )


def test_quality_layers(host: HostBuild, layered: Path, tmp_path: Path) -> None:
    for quality in (1, 2, 3):
        out = tmp_path / f"out{quality}"
        assert nnrdec(host, layered, "-o", out, "--quality", str(quality)).returncode == DONE
        assert same(out, nnr_codec.decode(layered, quality=quality))
        names = {entry["file"] for entry in json.loads((out / "tensors.json").read_text())}
        assert {path.name for path in out.iterdir()} == names | {"tensors.json"}
    assert nnrdec(host, layered, "-o", tmp_path / "all").returncode == DONE
    assert same(tmp_path / "all", nnr_codec.decode(layered))
    assert nnrdec(host, layered, "-o", tmp_path / "no", "--quality=4").returncode == USAGE
    assert nnrdec(host, layered, "-o", tmp_path / "no", "--quality=0").returncode == USAGE


def test_quality_layers_that_are_cut(host: HostBuild, layered: Path, tmp_path: Path) -> None:
    data = layered.read_bytes()
    expected = nnr_codec.decode(data, quality=2)
    layered.write_bytes(data[:-1])
    done = nnrdec(host, layered, "-o", tmp_path / "out")
    assert done.returncode == DONE
    assert "is cut: quality layers from number 3 on, of 3, are left out" in done.stderr
    assert same(tmp_path / "out", expected)
    layered.write_bytes(data[:-9] + bytes([data[-9] ^ 8]) + data[-8:])  # damaged is not cut
    assert nnrdec(host, layered, "-o", tmp_path / "no").returncode == BAD_BITSTREAM


@pytest.mark.parametrize("lossless", [False, True])
def test_updates_of_a_base(host: HostBuild, tmp_path: Path, lossless: bool) -> None:
    options = replace(update_streams.OPTIONS, lossless=lossless)
    streams = update_streams.series(options)
    paths = [tmp_path / f"{number}.nnr" for number in range(3)]
    for path, stream in zip(paths, streams, strict=True):
        path.write_bytes(stream)
    for count in (1, 2):
        base = [f"--base={path}" for path in paths[:count]]
        out = tmp_path / f"out{count}"
        assert nnrdec(host, paths[count], "-o", out, *base).returncode == DONE
        assert same(out, nnr_codec.decode(streams[count], base=streams[:count]))
    wrong = {
        "an update without its base": [],
        "is no update": [f"--base={paths[0]}"],
        "an update of another bitstream": [f"--base={paths[0]}"],
        "is an update: --base tells of what": [f"--parent={path}" for path in paths[:2]],
    }
    for text, words in wrong.items():
        file = paths[2] if text != "is no update" else paths[0]
        done = nnrdec(host, file, "-o", tmp_path / "no", *words)
        assert (done.returncode, text in done.stderr) == (BAD_BITSTREAM, True), done.stderr
    both = [f"--base={paths[0]}", f"--parent={paths[1]}"]
    assert nnrdec(host, paths[2], "-o", tmp_path / "no", *both).returncode == USAGE
