"""nnr-decode of what arrives slowly: decoded and written while it does, to the same file."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cli_support import LONG, Run, factored_stream, load, random_weights, save, script

import nnr_codec
from nnr_codec.bitstream import DataUnit, parse_units
from nnr_codec.checkpoints import save_arriving, takes_arriving
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.model import Array, Model, Parameter

FORMATS = [".safetensors", ".npz"]


def stream_of_all_kinds() -> bytes:
    """A stream with ties, an empty tensor, a scalar, and types and entries of the model map."""
    arrays: dict[str, Array] = {
        "embedding": random_weights(30, 20),
        "count": np.array(7, np.int64),
        "mask": np.arange(12).reshape(3, 4) % 3 == 0,
        "empty": np.zeros((0, 4), np.float32),
        "wide": np.array([2**40, -3]),
    }
    parameters = [Parameter.from_array(name, array) for name, array in arrays.items()]
    first = parameters[0]
    tied = Parameter("head", first.shape, first.dtype, first.load, "embedding")
    model = Model([*parameters, tied], metadata={"author": "somebody"})
    return nnr_codec.encode(model).data or b""


@contextmanager
def fifo(path: Path, data: bytes) -> Iterator[Path]:
    """Give a named pipe into which a thread writes some bytes."""
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_bytes, args=(data,))
    thread.start()
    yield path
    thread.join(LONG)


def decoded_from_pipe(run: Run, folder: Path, data: bytes, *arguments: Any) -> int:
    with fifo(folder / "pipe", data) as path:
        return run("nnr-decode", path, *arguments).code


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("make", [stream_of_all_kinds, factored_stream])
def test_the_file_is_the_same(
    run: Run, tmp_path: Path, make: Any, suffix: str, threads: int
) -> None:
    data = make()
    (tmp_path / "m.nnr").write_bytes(data)
    asked = "-q", "--threads", threads
    assert run("nnr-decode", tmp_path / "m.nnr", "-o", tmp_path / f"a{suffix}", *asked).code == 0
    output = tmp_path / f"b{suffix}"
    assert decoded_from_pipe(run, tmp_path, data, "-o", output, *asked) == 0
    assert output.read_bytes() == (tmp_path / f"a{suffix}").read_bytes()


def test_the_results_are_the_same(run: Run, stream: Path, tmp_path: Path) -> None:
    with fifo(tmp_path / "pipe", stream.read_bytes()) as path:
        found = run("nnr-decode", path, "-o", tmp_path / "a.npz")
    expected = run("nnr-decode", stream, "-o", tmp_path / "b.npz")
    assert found.out.split(": ")[1].split(",")[:3] == expected.out.split(": ")[1].split(",")[:3]


def test_some_tensors(run: Run, stream: Path, tmp_path: Path) -> None:
    output, data = tmp_path / "m.safetensors", stream.read_bytes()
    assert decoded_from_pipe(run, tmp_path, data, "-o", output, "--only", "first.*") == 0
    assert list(load(output)) == ["first.weight", "first.bias"]


def test_the_right_digest(run: Run, stream: Path, tmp_path: Path) -> None:
    digest = run("nnr-info", stream, "--digest").out.strip()
    output, data = tmp_path / "m.safetensors", stream.read_bytes()
    assert decoded_from_pipe(run, tmp_path, data, "-o", output, "--verify", digest) == 0
    assert list(load(output)) == list(nnr_codec.load_file(stream))


@pytest.mark.parametrize(
    ("options", "code"), [(["--only", "nothing"], 2), (["--verify", "0" * 64], 4)]
)
@pytest.mark.parametrize("suffix", FORMATS)
def test_nothing_is_written_if_it_is_not_what_was_asked_for(
    run: Run, stream: Path, tmp_path: Path, suffix: str, options: list[str], code: int
) -> None:
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / f"m{suffix}"
    assert decoded_from_pipe(run, tmp_path, stream.read_bytes(), "-o", output, *options) == code
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("threads", ["1", "2"])
def test_damage_ends_the_command_while_the_pipe_is_open(
    stream: Path, tmp_path: Path, suffix: str, threads: str
) -> None:
    """So the units are decoded when they arrive."""
    data = bytearray(stream.read_bytes())
    units = [parsed for parsed in parse_units(bytes(data)) if isinstance(parsed.record, DataUnit)]
    start = units[0].payload_offset
    data[start : start + len(units[0].payload)] = b"\xff" * len(units[0].payload)
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / f"m{suffix}"
    command = [script("nnr-decode"), "-", "-o", str(output), "--threads", threads]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, bufsize=0, **pipes) as process:
        process.stdin.write(data[: units[1].unit.byte_offset])  # and nothing behind the first unit
        assert process.wait(LONG) == 3
        assert b"bad bitstream: <stdin>: unit" in process.stderr.read()
    assert os.listdir(tmp_path / "out") == []


def test_a_pipe_is_written_as_before(run: Run, stream: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.npz")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "out.npz").read_bytes()))
    reader.start()
    data = stream.read_bytes()
    assert decoded_from_pipe(run, tmp_path, data, "-o", tmp_path / "out.npz", "-q") == 0
    reader.join(LONG)
    (tmp_path / "copy.npz").write_bytes(found[0])
    assert list(load(tmp_path / "copy.npz")) == list(nnr_codec.load_file(stream))


def test_which_outputs_take_what_arrives(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    for output in (tmp_path / "pipe.npz", "/dev/stdout", tmp_path, tmp_path / "m.pt"):
        assert not takes_arriving(output)
    assert takes_arriving(tmp_path / "new.NPZ")


class TestFiles:
    @pytest.mark.parametrize("suffix", FORMATS)
    def test_tensors_are_written_as_they_come(self, tmp_path: Path, suffix: str) -> None:
        arrays = {"a": random_weights(3, 5), "b": np.arange(7), "c": np.zeros((), np.float16)}
        save_arriving(tmp_path / f"a{suffix}", iter(arrays.items()), metadata=lambda: {"x": "y"})
        nnr_codec.checkpoints.save_checkpoint(tmp_path / f"b{suffix}", arrays, metadata={"x": "y"})
        found = (tmp_path / f"a{suffix}").read_bytes()
        assert found == (tmp_path / f"b{suffix}").read_bytes()

    def test_what_is_moved_in_pieces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nnr_codec.checkpoints.safetensors._MOVED_BYTES", 7)
        arrays = {f"t{n}": random_weights(n, n) for n in range(1, 9)}
        save_arriving(tmp_path / "m.safetensors", iter(arrays.items()))
        found = load(tmp_path / "m.safetensors")
        assert all(np.array_equal(found[name], values) for name, values in arrays.items())
        save_arriving(tmp_path / "none.safetensors", iter(()))
        assert load(tmp_path / "none.safetensors") == {}

    def test_refusals(self, tmp_path: Path) -> None:
        narrow = {"w": np.zeros(3, ml_dtypes.bfloat16)}
        with pytest.raises(InvalidModel, match=r"cannot be held by an \.npz"):
            save_arriving(tmp_path / "m.npz", iter(narrow.items()))
        tensors = iter({"x": np.ones(1)}.items())
        with pytest.raises(InvalidOptions, match="cannot hold the entry"):
            save_arriving(tmp_path / "m.npz", tensors, metadata=lambda: {"x": "y"})
        with pytest.raises(InvalidModel, match="reserve this name"):
            save_arriving(tmp_path / "m.safetensors", iter({"__metadata__": np.ones(1)}.items()))
        assert os.listdir(tmp_path) == []
        save(tmp_path / "old.npz", {"x": np.ones(1)})
        with pytest.raises(InvalidOptions, match="exists already"):
            save_arriving(tmp_path / "old.npz", iter(()))
