"""What goes wrong from outside: full disks, signals, files that change. Nothing half-written stays.

In each case the message names the file, and the exit code is the one in the README.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import LONG, Run, load, random_weights, run_script, save, script

import nnr_codec
from nnr_codec.checkpoints import save_checkpoint
from nnr_codec.decoding import stream_decoder
from nnr_codec.encoding import tensor_encoder
from nnr_codec.support.rereadable_file import RereadableFile

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs O_TMPFILE")
COUNT, SIDE = 6, 300
FULL = 200_000  # bytes, after which a file cannot grow: within the third tensor decoded


def extra(name: str) -> Any:
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")


each_output = pytest.mark.parametrize(
    "suffix",
    [
        ".safetensors",
        ".npz",
        pytest.param(".pt", marks=extra("torch")),
        pytest.param(".onnx", marks=extra("onnx")),
    ],
)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return {f"w{n}": random_weights(SIDE, SIDE, seed=n) for n in range(COUNT)}


@pytest.fixture
def model(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    return save(tmp_path / "model.safetensors", arrays)


@pytest.fixture
def stream(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.nnr"
    nnr_codec.encode(model, path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for the output."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def onnx_graph(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write an ONNX model with `arrays` as its initializers."""
    import onnx

    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph([], "g", [], [], initializer=tensors)
    onnx.save_model(onnx.helper.make_model(graph), path)
    return path


def run_on_full_disk(name: str, *arguments: object, **options: Any) -> Any:
    """Run a command whose files cannot grow beyond FULL bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))

    return run_script(name, *arguments, preexec_fn=limit, **options)


class TestFullDisk:
    def test_encoding(self, model: Path, out: Path) -> None:
        done = run_on_full_disk("nnr-encode", model, "-o", out / "m.nnr", "--qp", -60)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"nnr-encode: error: {out / 'm.nnr'}: File too large\n"
        assert os.listdir(out) == []

    @each_output
    @pytest.mark.parametrize("old", [None, b"old"], ids=["new file", "old file"])
    def test_decoding(
        self, stream: Path, out: Path, tmp_path: Path, arrays: Any, suffix: str, old: bytes | None
    ) -> None:
        output = out / f"m{suffix}"
        if old is not None:
            output.write_bytes(old)
        graph = ["--graph", onnx_graph(tmp_path / "g.onnx", arrays)] if suffix == ".onnx" else []
        done = run_on_full_disk("nnr-decode", stream, "-o", output, "-f", *graph)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"nnr-decode: error: {output}: File too large\n"
        assert [file.read_bytes() for file in out.iterdir()] == ([] if old is None else [old])

    def test_decoding_of_a_pipe(self, stream: Path, out: Path) -> None:
        output, data = out / "m.npz", stream.read_bytes()
        done = run_on_full_disk("nnr-decode", "-", "-o", output, input=data, text=False)
        assert done.returncode == 1
        assert done.stderr.decode() == f"nnr-decode: error: {output}: File too large\n"
        assert os.listdir(out) == []

    def test_copy_of_a_pipe(self, model: Path, stream: Path, out: Path) -> None:
        nnr_codec.encode(model, stream, nnr_codec.EncodeOptions(qp=-60), overwrite=True)
        data = stream.read_bytes()
        assert len(data) > FULL
        factors = "--layers", "factorized"  # for which all headers are read first
        command = "nnr-decode", "-", "-o", out / "m.npz", *factors
        done = run_on_full_disk(*command, input=data, text=False)
        assert done.returncode == 1
        expected = f"nnr-decode: error: {tempfile.gettempdir()}: File too large\n"
        assert done.stderr.decode() == expected
        assert os.listdir(out) == []


# Decodes one unit, says so, and hangs at the next.
HANGING = """
import sys, time
from nnr_codec.cli import decode
from nnr_codec.decoding import stream_decoder
original = stream_decoder.decode_data_unit
def once(*arguments, **options):
    stream_decoder.decode_data_unit = hang
    print("decoded", flush=True)
    return original(*arguments, **options)
def hang(*arguments, **options):
    while True:  # a signal that comes just before a sleep does not end that one
        time.sleep(0.1)
stream_decoder.decode_data_unit = once
sys.exit(decode.main(sys.argv[1:]))
"""


@linux_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@each_output
def test_nothing_stays_of_a_killed_decoder(
    stream: Path, out: Path, tmp_path: Path, arrays: Any, number: signal.Signals, suffix: str
) -> None:
    output = out / f"m{suffix}"
    arguments = [str(stream), "-o", str(output), "--threads", "1"]
    if suffix == ".onnx":
        arguments += ["--graph", str(onnx_graph(tmp_path / "g.onnx", arrays))]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", HANGING, *arguments]
    folder = Path(script("nnr-decode")).parent  # no checkout, which would be imported before us
    with subprocess.Popen(command, cwd=folder, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoded\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=LONG)
    codes = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
    messages = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}
    assert process.returncode == codes[number]
    assert err == (f"nnr-decode: error: {messages[number]}\n" if number in messages else "")
    assert os.listdir(out) == []


class TestOutputs:
    @pytest.mark.parametrize("command", ["nnr-encode", "nnr-decode"])
    @pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
    def test_folder_that_cannot_be_written(
        self, run: Run, model: Path, stream: Path, command: str
    ) -> None:
        """Whoever we are, root too."""
        output = "/proc/m.nnr" if command == "nnr-encode" else "/proc/m.npz"
        done = run(command, model if command == "nnr-encode" else stream, "-o", output)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"{command}: error: --output: cannot write '{output}': ")

    @pytest.mark.parametrize("link", [False, True])
    def test_output_that_is_the_input(
        self, run: Run, model: Path, stream: Path, tmp_path: Path, link: bool
    ) -> None:
        stream = Path(shutil.copy(stream, tmp_path / "stream.npz"))
        for command, source in (("nnr-encode", model), ("nnr-decode", stream)):
            data, output = source.read_bytes(), source
            if link:
                output = tmp_path / f"{command}.npz"
                output.symlink_to(source)
            done = run(command, source, "-o", output, "-f")
            assert (done.code, done.out) == (2, "")
            assert done.err == f"{command}: error: --output: {str(output)!r} is the input\n"
            assert source.read_bytes() == data

    def test_digest_of_what_goes_into_a_pipe(self, run: Run, stream: Path, out: Path) -> None:
        os.mkfifo(out / "pipe.npz")
        done = run("nnr-decode", stream, "-o", out / "pipe.npz", "--verify", "0" * 64)
        assert (done.code, done.out) == (2, "")
        assert str(out / "pipe.npz") in done.err


class TestInputsThatChange:
    def test_model_is_truncated_while_it_is_encoded(
        self, run: Run, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = tensor_encoder.TensorEncoder.encode

        def encode(self: Any, *arguments: Any) -> Any:
            encoded = original(self, *arguments)
            os.truncate(model, 2 * SIDE * SIDE)
            return encoded

        monkeypatch.setattr(tensor_encoder.TensorEncoder, "encode", encode)
        done = run("nnr-encode", model, "-o", out / "m.nnr", "--threads", 1)
        assert (done.code, done.out) == (1, "")
        reason = f"'w1': in {str(model)!r}: the file ends before the tensor does"
        assert done.err == f"nnr-encode: error: {reason}\n"
        assert os.listdir(out) == []

    def test_stream_is_truncated_while_it_is_decoded(
        self, run: Run, stream: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = stream_decoder.decode_data_unit

        def decode(*arguments: Any, **options: Any) -> Any:
            os.truncate(stream, stream.stat().st_size // 2)
            return original(*arguments, **options)

        monkeypatch.setattr(stream_decoder, "decode_data_unit", decode)
        done = run("nnr-decode", stream, "-o", out / "m.npz", "--threads", 1)
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith(f"nnr-decode: error: bad bitstream: {stream}: unit ")
        assert os.listdir(out) == []

    @pytest.mark.parametrize("change", ["names", "shapes", "types"])
    def test_stream_is_another_when_it_is_decoded(
        self, run: Run, stream: Path, out: Path, change: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = [f"{'v' if change == 'names' else 'w'}{n}" for n in range(COUNT)]
        dtype = np.float16 if change == "types" else np.float32
        shape = (SIDE,) if change == "shapes" else (SIDE, SIDE)
        other = nnr_codec.encode({name: np.ones(shape, dtype) for name in names}).data or b""
        original = RereadableFile.rewind

        def rewind(self: RereadableFile) -> None:
            stream.write_bytes(other)
            original(self)

        monkeypatch.setattr(RereadableFile, "rewind", rewind)
        done = run("nnr-decode", stream, "-o", out / "m.npz")
        assert (done.code, done.out) == (1, "")
        reason = f"'w0': in {str(stream)!r}, which changes while it is read"
        assert done.err == f"nnr-decode: error: {reason}\n"
        assert os.listdir(out) == []

    def test_stream_is_opened_once(
        self, run: Run, stream: Path, out: Path, arrays: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that replaces it under its name does no harm."""
        original = RereadableFile.rewind

        def rewind(self: RereadableFile) -> None:
            stream.rename(stream.with_suffix(".old"))
            stream.write_bytes(b"another")
            original(self)

        monkeypatch.setattr(RereadableFile, "rewind", rewind)
        assert run("nnr-decode", stream, "-o", out / "m.npz").code == 0
        assert list(load(out / "m.npz")) == list(arrays)


class TestStandardStreams:
    """Closed ones, full ones: one line that tells, and the exit code of a failure."""

    def run(self, command: str, redirections: str) -> tuple[int, str, str]:
        """Run a line of a shell; return its exit code, and what came to stdout and stderr."""
        done = subprocess.run(
            ["bash", "-c", f"{Path(script('nnr-info')).parent}/{command} {redirections}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONG,
        )
        return done.returncode, done.stdout, done.stderr

    @pytest.mark.parametrize(
        "command", ["nnr-info -", "nnr-decode - -o {}.npz", "nnr-encode - -o {}.nnr"]
    )
    def test_closed_input(self, out: Path, command: str) -> None:
        found = self.run(command.format(out / "m"), "<&-")
        program = command.split()[0]
        assert found == (1, "", f"{program}: error: standard input: Bad file descriptor\n")
        assert os.listdir(out) == []

    def test_closed_input_that_nobody_needs(self, stream: Path, model: Path, out: Path) -> None:
        assert self.run(f"nnr-info {stream} --json", "<&-")[0] == 0
        assert self.run(f"nnr-decode {stream} -o {out / 'm.npz'}", "<&-")[0] == 0
        assert self.run(f"nnr-encode {model} -o {out / 'm.nnr'}", "<&-")[0] == 0
        assert list(load(out / "m.npz")) == list(nnr_codec.load_file(out / "m.nnr"))

    @pytest.mark.parametrize(
        ("redirection", "reason"),
        [
            (">&-", "Bad file descriptor"),
            ("<&- >&-", "Bad file descriptor"),
            pytest.param("> /dev/full", "No space left on device", marks=linux_only),
        ],
    )
    def test_output_that_cannot_be_written(
        self, stream: Path, model: Path, out: Path, redirection: str, reason: str
    ) -> None:
        for command in (
            f"nnr-info {stream}",
            f"nnr-info {stream} --units",
            f"nnr-info {stream} --json --units",
            f"nnr-info {stream} --digest",
            f"nnr-decode {stream} -o {out / 'm.npz'}",
            f"nnr-encode {model} -o {out / 'm.nnr'}",
            "nnr-info --help",
            "nnr-encode --version",
        ):
            found = self.run(command, redirection)
            program = command.split()[0]
            assert found == (1, "", f"{program}: error: standard output: {reason}\n"), command
        assert list(load(out / "m.npz")) == list(nnr_codec.load_file(out / "m.nnr"))

    def test_closed_output_that_nobody_needs(self, stream: Path, out: Path) -> None:
        found = self.run(f"nnr-decode {stream} -q -o {out / 'm.npz'}", ">&-")
        assert found == (0, "", "")
        assert self.run(f"nnr-info {stream}.no", ">&-") == (
            *(1, ""),
            f"nnr-info: error: {stream}.no: No such file or directory\n",
        )

    def test_output_file_that_is_closed(self, stream: Path) -> None:
        code, out, _ = self.run(f"nnr-decode {stream} -o /dev/stdout", ">&-")
        assert (code != 0, out) == (True, "")

    @pytest.mark.parametrize("redirection", ["2>&-", "<&- >&- 2>&-"])
    def test_closed_errors(self, stream: Path, tmp_path: Path, redirection: str) -> None:
        assert self.run(f"nnr-info {tmp_path / 'absent'}", redirection) == (1, "", "")
        assert self.run("nnr-info --nothing", redirection) == (2, "", "")
        damaged = tmp_path / "damaged.nnr"
        damaged.write_bytes(stream.read_bytes()[:-1])
        assert self.run(f"nnr-info {damaged}", redirection) == (3, "", "")

    @linux_only
    def test_full_errors(self, tmp_path: Path) -> None:
        assert self.run(f"nnr-info {tmp_path / 'absent'}", "2> /dev/full") == (1, "", "")


# Runs a command when but so many more files can be opened.
FEW_FILES = """
import importlib, os, resource, sys
main = importlib.import_module(f"nnr_codec.cli.{sys.argv[1]}").main
import numpy.ma, safetensors.numpy, tempfile, threadpoolctl
used = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (used + int(sys.argv[2]),) * 2)
sys.exit(main(sys.argv[3:]))
"""


@linux_only
class TestTooManyOpenFiles:
    @each_output
    def test_every_number(
        self, stream: Path, model: Path, out: Path, tmp_path: Path, arrays: Any, suffix: str
    ) -> None:
        """With few more the commands fail, and say so; with some more they are done."""
        pytest.importorskip("onnx")
        graph = ["--graph", str(onnx_graph(tmp_path / "g.onnx", arrays))]
        other = out / f"m{suffix}"
        save_checkpoint(other, arrays, **({"graph": graph[1]} if suffix == ".onnx" else {}))
        for command in (
            *([["info", stream], ["info", "--digest", stream]] if suffix == ".npz" else []),
            ["decode", stream, "-f", "-o", other, *(graph if suffix == ".onnx" else [])],
            ["encode", other, "-f", "-o", out / "m.nnr"],
        ):
            numbers = (0, 1, 2, 3) if suffix == ".safetensors" else (0, 3)
            codes = [self.run(files, command) for files in numbers]
            assert codes[-1] == 0
            assert codes[0] == 1
            assert set(codes) == {0, 1}

    def run(self, files: int, command: list[Any]) -> int:
        program, *arguments = map(str, command)
        done = subprocess.run(
            [sys.executable, "-c", FEW_FILES, program, str(files), *arguments],
            cwd=Path(script("nnr-info")).parent,
            capture_output=True,
            text=True,
            timeout=LONG,
        )
        if done.returncode:
            assert done.stderr.startswith(f"nnr-{program}: error: ")
            assert done.stderr.endswith("Too many open files\n")
            assert done.stderr.count("\n") == 1
        return done.returncode
