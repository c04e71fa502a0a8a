"""nnr-encode: exit codes, what it prints, what it writes and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from cli_support import (
    LONG,
    Run,
    assert_same,
    factored_stream,
    random_weights,
    run_script,
    save,
    script,
    small_model,
    unbuffered,
)

import nnr_codec
from nnr_codec.bitstream.qp import step_size
from nnr_codec.checkpoints import save_checkpoint


class TestOutput:
    def test_default_is_one_line_of_results(self, model: Path, tmp_path: Path) -> None:
        done = run_script("nnr-encode", model, "-o", tmp_path / "m.nnr")
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = done.stdout.splitlines()
        assert f"{model} -> {tmp_path / 'm.nnr'}: 4 tensors, 1656 weights, 6.62 kB -> " in line
        assert line.count("%") == 1

    def test_verbose_adds_a_row_for_each_tensor(self, run: Run, model: Path) -> None:
        done = run("nnr-encode", model, "--dry-run", "-v", "--nonweight-qp", "-60")
        header, *rows, last = done.out.splitlines()
        columns = ["tensor", "shape", "dtype", "kind", "qp", "bytes", "bit/weight", "NMSE"]
        assert header.split() == columns
        assert [row.split()[:5] for row in rows] == [
            ["first.weight", "40x24", "float32", "dq", "-38"],
            ["first.bias", "40", "float32", "dq", "-60"],
            ["second.weight", "16x40", "float32", "dq", "-38"],
            ["second.bias", "16", "float32", "dq", "-60"],
        ]
        assert "(dry run)" in last

    def test_quiet_prints_nothing(self, run: Run, model: Path, tmp_path: Path) -> None:
        output = tmp_path / "m.nnr"
        done = run("nnr-encode", model, "-o", output, "-q", "--exclude", "nothing")
        assert (done.code, done.out, done.err) == (0, "", "")
        assert output.stat().st_size > 0

    def test_quiet_and_verbose_exclude_each_other(self, run: Run, model: Path) -> None:
        assert run("nnr-encode", model, "--dry-run", "-q", "-v").code == 2

    def test_json_alone_on_stdout(self, model: Path, tmp_path: Path) -> None:
        output = tmp_path / "m.nnr"
        options = ["--json", "-v", "--exclude", "nothing"]
        done = run_script("nnr-encode", model, "-o", output, *options)
        assert done.returncode == 0
        report = json.loads(done.stdout)
        assert report["bytes"] == output.stat().st_size
        assert report["bytes"] == report["header_bytes"] + sum(
            tensor["bytes"] for tensor in report["per_tensor"]
        )
        assert report["original_bytes"] == 4 * report["elements"] == 4 * 1656
        assert report["bits_per_weight"] == pytest.approx(8 * report["bytes"] / 1656)
        assert report["unmatched_globs"] == ["nothing"]
        assert done.stderr == "nnr-encode: warning: 'nothing' matches no tensor\n"

    def test_version_and_help(self) -> None:
        for option in ("--version", "--help"):
            done = run_script("nnr-encode", option)
            assert done.returncode == 0
            assert "nnr-encode" in done.stdout

    def test_tensor_names_cannot_control_the_terminal(self, run: Run, tmp_path: Path) -> None:
        model = save(tmp_path / "m.safetensors", {"\x1b[31mred\n": np.ones((2, 2), np.float32)})
        done = run("nnr-encode", model, "--dry-run", "-v")
        assert "\\x1b[31mred\\n" in done.out
        assert "\x1b" not in done.out


class TestWriting:
    def test_dry_run_writes_nothing(self, run: Run, model: Path, tmp_path: Path) -> None:
        before = sorted(os.listdir(tmp_path))
        done = run("nnr-encode", model, "-o", tmp_path / "m.nnr", "--dry-run", "--json")
        assert sorted(os.listdir(tmp_path)) == before
        real = run("nnr-encode", model, "-o", tmp_path / "m.nnr", "--json")
        assert json.loads(done.out)["bytes"] == json.loads(real.out)["bytes"]

    def test_no_overwriting_without_force(self, run: Run, model: Path, tmp_path: Path) -> None:
        output = tmp_path / "m.nnr"
        output.write_bytes(b"old")
        done = run("nnr-encode", model, "-o", output)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("nnr-encode: error: --output: ")
        assert "exists already; -f overwrites it" in done.err
        assert str(output) in done.err
        assert output.read_bytes() == b"old"
        assert run("nnr-encode", model, "-o", output, "-f").code == 0
        assert nnr_codec.load_file(output).keys() == small_model().keys()

    def test_failure_leaves_the_old_file(self, run: Run, tmp_path: Path) -> None:
        output = tmp_path / "m.nnr"
        output.write_bytes(b"old")
        model = save(tmp_path / "m.safetensors", small_model())
        assert run("nnr-encode", model, "-o", output, "-f", "--target-size", "1").code == 1
        assert output.read_bytes() == b"old"
        assert sorted(os.listdir(tmp_path)) == ["m.nnr", "m.safetensors"]

    def test_never_replaces_its_input(self, run: Run, model: Path, tmp_path: Path) -> None:
        before = model.read_bytes()
        (tmp_path / "link").symlink_to(model)
        for output in (model, tmp_path / "link"):
            assert run("nnr-encode", model, "-o", output, "-f").code == 2
        assert model.read_bytes() == before

    @pytest.mark.parametrize("options", [[], ["--scan-order", "1", "--profile", "1"]])
    def test_threads_do_not_change_the_bytes(
        self, run: Run, model: Path, tmp_path: Path, options: list[str]
    ) -> None:
        streams = []
        for threads in (1, 2, 5):
            output = tmp_path / f"{threads}.nnr"
            done = run("nnr-encode", model, "-o", output, "--threads", threads, *options)
            assert done.code == 0
            streams.append(output.read_bytes())
        assert streams[1:] == streams[:1] * 2
        assert list(nnr_codec.decode(streams[0])) == list(small_model())

    def test_both_model_formats_give_the_same_stream(
        self, run: Run, stream: Path, tmp_path: Path
    ) -> None:
        archive = save(tmp_path / "model.npz", small_model())
        assert run("nnr-encode", archive, "-o", tmp_path / "npz.nnr", "--no-group").code == 0
        assert (tmp_path / "npz.nnr").read_bytes() == stream.read_bytes()


class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            (np.array([1, np.nan], np.float32), "NaN"),
            (np.array([1, -np.inf], np.float16), "infinities"),
            (np.array([6e38]), "beyond binary32"),
            (np.array([1, np.finfo("f4").min], np.float32), "too large for qp -75"),
            (np.array([1, 1e20], np.float32), "too large for qp -75"),
        ],
    )
    @pytest.mark.filterwarnings("error")  # numpy's words are not ours
    def test_what_no_step_can_say_is_named(
        self, run: Run, tmp_path: Path, values: np.ndarray, reason: str
    ) -> None:
        """And comes back exactly."""
        arrays = {"good": np.ones(3, np.float32), "the.bad\none": values}
        model = save(tmp_path / "m.safetensors", arrays)
        done = run("nnr-encode", model, "-o", tmp_path / "m.nnr")
        assert done.code == 0
        assert done.err.startswith("nnr-encode: warning: 'the.bad\\none' holds ")
        assert reason in done.err
        assert len(done.err.splitlines()) == 1
        found = nnr_codec.load_file(tmp_path / "m.nnr")["the.bad\none"]
        assert (found.dtype, found.tobytes()) == (values.dtype, values.tobytes())
        assert run("nnr-encode", model, "-o", tmp_path / "m.nnr", "-f", "-q").err == ""

    @pytest.mark.skipif(np.__version__ < "2", reason="arrays have at most 32 dimensions")
    def test_too_many_dimensions(self, run: Run, tmp_path: Path) -> None:
        model = save(tmp_path / "m.safetensors", {"w": np.zeros([1] * 33, np.float32)})
        done = run("nnr-encode", model, "--dry-run")
        assert done.code == 1
        assert "'w': has more than 32 dimensions" in done.err

    def test_lossless_tensors_may_hold_anything(self, run: Run, tmp_path: Path) -> None:
        """A mask of minus infinity, for instance."""
        values = np.array([np.nan, -np.inf, 1, -0.0], np.float32)
        model = save(tmp_path / "m.npz", {"w": values})
        assert run("nnr-encode", model, "-o", tmp_path / "m.nnr", "--exclude", "w").code == 0
        assert nnr_codec.load_file(tmp_path / "m.nnr")["w"].tobytes() == values.tobytes()

    @pytest.mark.parametrize("dq", ["--dq", "--no-dq"])
    def test_float16_that_a_coarse_step_would_make_infinite(
        self, run: Run, tmp_path: Path, dq: str
    ) -> None:
        values = np.random.default_rng(0).uniform(-65504, 65504, (40, 40)).astype(np.float16)
        values[0] = 65504
        model = save(tmp_path / "m.npz", {"w": values})
        done = run("nnr-encode", model, "-o", tmp_path / "m.nnr", "--qp", "40", dq)
        assert done.code == 0
        found = nnr_codec.load_file(tmp_path / "m.nnr")["w"].astype(np.float64)
        most = 3 if dq == "--dq" else 1.5  # a trellis may be off by as much elsewhere
        assert np.isfinite(found).all()
        assert np.abs(found - values).max() <= most * step_size(40, 2)

    def test_float64_beyond_binary32_travels_losslessly(self, run: Run, tmp_path: Path) -> None:
        arrays = {"exact": np.array([0.5]), "w": np.array([0.1]), "wide": np.array([-(2**31) - 1])}
        model = save(tmp_path / "m.npz", arrays)
        assert run("nnr-encode", model, "-o", tmp_path / "m.nnr", "--exclude", "*").code == 0
        found = nnr_codec.load_file(tmp_path / "m.nnr")
        assert all(found[name].tobytes() == values.tobytes() for name, values in arrays.items())

    def test_what_is_no_model(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("hello, world")
        for path in (tmp_path / "text", tmp_path / "missing", tmp_path):
            done = run("nnr-encode", path, "--dry-run")
            assert (done.code, done.out) == (1, "")
            assert str(path) in done.err

    def test_damaged_model_names_file_and_tensor(self, run: Run, tmp_path: Path) -> None:
        model = save(tmp_path / "m.npz", {"w": np.full(4, 3, np.uint8)})
        model.write_bytes(model.read_bytes().replace(b"\3\3\3\3", b"\3\3\3\2"))
        done = run("nnr-encode", model, "--dry-run")
        assert done.code == 1
        assert "'w'" in done.err
        assert str(model) in done.err

    def test_output_that_cannot_be_written(self, run: Run, model: Path, tmp_path: Path) -> None:
        for output in (tmp_path / "no" / "folder.nnr", tmp_path):
            done = run("nnr-encode", model, "-o", output)
            assert done.code == 2
            assert str(output) in done.err
        assert run("nnr-encode", model).code == 2  # no output at all

    def test_damaged_parent(self, run: Run, model: Path, stream: Path) -> None:
        stream.write_bytes(stream.read_bytes()[:-1])
        done = run("nnr-encode", model, "--dry-run", "--parent", stream)
        assert done.code == 3
        assert str(stream) in done.err

    def test_parent_of_another_shape(self, run: Run, stream: Path, tmp_path: Path) -> None:
        other = save(tmp_path / "o.npz", {"first.weight": random_weights(5, 5)})
        update = tmp_path / "u.nnr"
        assert run("nnr-encode", other, "-o", update, "--parent", stream).code == 0
        decoded = nnr_codec.decode(update, parents=[stream])
        assert decoded["first.weight"].shape == (5, 5)


def _bytes_in_output(process: subprocess.Popen[str], folder: Path) -> int:
    """Return how much the process has written to a file in `folder` that it still has open."""
    sizes = [0]
    with suppress(FileNotFoundError, ProcessLookupError):  # something was closed meanwhile
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            target = os.readlink(descriptor)
            if target.startswith(f"{folder}/") and ".safetensors" not in target:
                sizes.append(descriptor.stat().st_size)
    return max(sizes)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_encoder_leaves_no_output(tmp_path: Path, signal_number: signal.Signals) -> None:
    arrays = {f"w{n}": random_weights(512, 1024, seed=n) for n in range(24)}
    model = save(tmp_path / "big.safetensors", arrays)
    output = tmp_path / "big.nnr"
    output.write_bytes(b"old")
    command = [script("nnr-encode"), str(model), "-o", str(output), "-f"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=unbuffered()
    ) as process:
        give_up = time.monotonic() + LONG
        while process.poll() is None and not _bytes_in_output(process, tmp_path):
            assert time.monotonic() < give_up
            time.sleep(0.005)
        process.send_signal(signal_number)  # in the middle: something is written, not all
        out, err = process.communicate(timeout=LONG)
    interrupted = signal_number == signal.SIGINT
    codes = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
    assert process.returncode == codes[signal_number]
    assert out == ""
    assert ("interrupted" in err) == interrupted
    assert output.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["big.nnr", "big.safetensors"]


def test_lossless_tensors_come_back_exactly(run: Run, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.nnr"
    assert run("nnr-encode", model, "-o", output, "--exclude", "*").code == 0
    assert_same(nnr_codec.load_file(output), small_model())


class TestFactors:
    @pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
    def test_a_file_of_factors_is_the_model_of_its_weights(
        self, run: Run, tmp_path: Path, suffix: str
    ) -> None:
        """It comes back as it was, with each factor coded once; the map need not be told again."""
        stream, again = tmp_path / "f.nnr", tmp_path / "again.nnr"
        stream.write_bytes(factored_stream())
        file = tmp_path / f"f{suffix}"
        assert run("nnr-decode", stream, "-o", file, "--layers", "factorized").code == 0
        done = run("nnr-encode", file, "-o", again, "-v")
        assert done.code == 0
        assert [line.split()[0] for line in done.out.splitlines()[1:5]] == ["a", "b", "c", "d"]
        assert again.stat().st_size == stream.stat().st_size
        assert_same(nnr_codec.load_file(again), nnr_codec.load_file(stream))

    def test_a_damaged_map(self, run: Run, tmp_path: Path) -> None:
        factors = {"w.factor0": random_weights(4, 2), "w.factor1": random_weights(2, 5)}
        entry = {"form": "lr", "shape": [4, 6], "factors": list(factors)}
        text = json.dumps({"nnr_model_map": 1, "factorizations": {"w": entry}})
        text = text.replace(" ", "")
        path = tmp_path / "f.safetensors"
        save_checkpoint(path, factors, metadata={"nnr_model_map": text})
        done = run("nnr-encode", path, "-o", tmp_path / "f.nnr")
        assert done.code == 1
        assert "f.safetensors" in done.err
        assert "model map" in done.err
