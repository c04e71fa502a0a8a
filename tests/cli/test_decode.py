"""nnr-decode: exit codes, options, pipes, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from cli_support import (
    LONG,
    Run,
    assert_same,
    decomposed_stream,
    factored_stream,
    load,
    random_weights,
    run_script,
    save,
    script,
    small_model,
    with_damaged_payload,
)

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.bitstream import (
    DataUnit,
    ModelParameterSet,
    StartUnit,
    parse_units,
    write_record,
    write_unit,
)
from nnr_codec.bitstream.codes import FIRST_PRIVATE_UNIT_TYPE
from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.decoding.unit_decoder import DecodedTensor
from nnr_codec.factorization.model_map import parse_model_map
from nnr_codec.support.digest import digest


class TestOutput:
    def test_default_is_one_line_of_results(self, stream: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.safetensors"
        done = run_script("nnr-decode", stream, "-o", output)
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = done.stdout.splitlines()
        assert line.startswith(f"{stream} -> {output}: 4 tensors, 1656 weights, 6.62 kB")

    @pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".NPZ"])
    def test_formats(self, run: Run, stream: Path, tmp_path: Path, suffix: str) -> None:
        assert run("nnr-decode", stream, "-o", tmp_path / f"out{suffix}").code == 0
        assert_same(load(tmp_path / f"out{suffix}"), nnr_codec.load_file(stream))

    def test_json_alone_on_stdout(self, stream: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.safetensors"
        options = ["--json", "--only", "first.*"]
        done = run_script("nnr-decode", stream, "-o", output, *options)
        assert json.loads(done.stdout)["tensors"] == 2
        assert done.stderr == ""
        result = json.loads(run_script("nnr-decode", stream, "-o", output, "-f", "--json").stdout)
        assert (result["tensors"], result["elements"], result["bytes"]) == (4, 1656, 4 * 1656)
        assert result["digest"] == digest(load(output).items())

    def test_quiet_prints_nothing(self, run: Run, stream: Path, tmp_path: Path) -> None:
        done = run("nnr-decode", stream, "-o", tmp_path / "out.npz", "-q")
        assert (done.code, done.out, done.err) == (0, "", "")

    def test_quiet_prints_errors(self, run: Run, stream: Path, tmp_path: Path) -> None:
        done = run("nnr-decode", stream, "-o", tmp_path / "out.npz", "-q", "--only", "nothing")
        assert (done.code, done.out) == (2, "")
        assert done.err == "nnr-decode: error: --only: 'nothing' matches no tensor\n"

    def test_no_overwriting_without_force(self, run: Run, stream: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.npz"
        output.write_bytes(b"old")
        done = run("nnr-decode", stream, "-o", output)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("nnr-decode: error: --output: ")
        assert "exists already; -f overwrites it" in done.err
        assert output.read_bytes() == b"old"
        assert run("nnr-decode", stream, "-o", output, "--force").code == 0
        assert len(load(output)) == 4


class TestOptions:
    def test_only(self, run: Run, stream: Path, tmp_path: Path) -> None:
        damaged = tmp_path / "damaged.nnr"
        damaged.write_bytes(with_damaged_payload(stream.read_bytes()))  # second.bias, the last
        output = tmp_path / "out.npz"
        assert run("nnr-decode", damaged, "-o", output, "--only", "*.weight").code == 0
        expected = nnr_codec.load_file(stream)
        weights = {name: expected[name] for name in ("first.weight", "second.weight")}
        assert_same(load(output), weights)
        assert run("nnr-decode", damaged, "-o", output, "-f", "--only", "*.bias").code == 3

    def test_layers(self, run: Run, tmp_path: Path) -> None:
        data, g, h = decomposed_stream()
        (tmp_path / "dc.nnr").write_bytes(data)
        for options, expected in [
            ([], {"layer": g @ h}),
            (["--layers", "dense"], {"layer": g @ h}),
            (["--layers", "factorized"], {"layer_G": g, "layer_H": h}),
        ]:
            output = tmp_path / "out.npz"
            assert run("nnr-decode", tmp_path / "dc.nnr", "-o", output, "-f", *options).code == 0
            assert_same(load(output), expected)
        assert run("nnr-decode", tmp_path / "dc.nnr", "-o", output, "--layers", "both").code == 2

    @pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
    def test_factors_in_a_file(self, run: Run, tmp_path: Path, suffix: str) -> None:
        """With the map that tells what they make; a dense file has none."""
        if suffix == ".pt":
            pytest.importorskip("torch")
        stream, output = tmp_path / "f.nnr", tmp_path / f"out{suffix}"
        stream.write_bytes(factored_stream())
        assert run("nnr-decode", stream, "-o", output).code == 0
        dense = nnr_codec.load_file(stream)
        assert_same(load(output), dense)
        with open_checkpoint(output) as found:
            assert found.metadata == ({"format": "pt"} if suffix == ".safetensors" else {})
        assert run("nnr-decode", stream, "-o", output, "-f", "--layers", "factorized").code == 0
        factors = nnr_codec.decode(stream, layers="factorized")
        assert_same(load(output), factors)
        with open_checkpoint(output) as found:
            model_map = parse_model_map(found.metadata["nnr_model_map"], 32)
        assert model_map is not None
        assert sorted(model_map.factorizations) == ["a", "b", "c"]
        for name, entry in model_map.factorizations.items():
            made = entry.dense([factors[factor] for factor in entry.factors])
            np.testing.assert_allclose(made, dense[name], atol=1e-6)

    def test_factors_that_are_asked_for(self, run: Run, tmp_path: Path) -> None:
        """The map tells of the weights whose factors are all there."""
        stream, output = tmp_path / "f.nnr", tmp_path / "out.npz"
        stream.write_bytes(factored_stream())
        options = ["--layers", "factorized", "--only", "c"]
        assert run("nnr-decode", stream, "-o", output, *options).code == 0
        assert list(load(output)) == ["b.factor1", "c.factor0"]
        with open_checkpoint(output) as found:
            assert list(json.loads(found.metadata["nnr_model_map"])["factorizations"]) == ["c"]
        assert run("nnr-decode", stream, "-o", output, "-f", *options[:3], "d").code == 0
        with open_checkpoint(output) as found:
            assert found.metadata == {}

    @pytest.mark.parametrize("layers", ["dense", "factorized"])
    def test_the_digest_is_that_of_what_is_written(
        self, run: Run, tmp_path: Path, layers: str
    ) -> None:
        stream, output = tmp_path / "f.nnr", tmp_path / "out.npz"
        stream.write_bytes(factored_stream())
        shown = run("nnr-info", stream, "--digest", "--json", "--layers", layers)
        found = json.loads(shown.out)["digest"]
        options = ["--layers", layers, "--verify"]
        assert run("nnr-decode", stream, "-o", output, *options, found).code == 0
        other = "dense" if layers == "factorized" else "factorized"
        options = ["--layers", other, "--verify"]
        assert run("nnr-decode", stream, "-o", output, "-f", *options, found).code == 4

    def test_a_graph_has_no_place_for_factors(self, run: Run, tmp_path: Path) -> None:
        stream, output = tmp_path / "f.nnr", tmp_path / "out.onnx"
        stream.write_bytes(factored_stream())
        options = ["--graph", tmp_path / "graph.onnx", "--layers", "factorized"]
        done = run("nnr-decode", stream, "-o", output, *options)
        assert (done.code, output.exists()) == (2, False)
        assert "--layers" in done.err

    def test_series(self, run: Run, tmp_path: Path) -> None:
        """A model and two updates, each coded with all before it as parents."""
        streams: list[Path] = []
        for number in range(3):
            weights = random_weights(32, 32, seed=number) * (random_weights(32, 32) > 0)
            model = save(tmp_path / f"{number}.safetensors", {"w": weights})
            parents = [argument for path in streams for argument in ("--parent", path)]
            assert run("nnr-encode", model, "-o", tmp_path / f"{number}.nnr", *parents).code == 0
            streams.append(tmp_path / f"{number}.nnr")
            output = tmp_path / f"{number}.out.safetensors"
            done = run("nnr-decode", streams[-1], "-o", output, *parents)
            assert done.code == 0, done.err
            alone = nnr_codec.encode(model).data
            assert alone is not None
            assert_same(load(output), nnr_codec.decode(alone))
        missing = [[], ["--parent", streams[0]], ["--parent", streams[1], "--parent", streams[0]]]
        for parents in missing:
            done = run("nnr-decode", streams[2], "-o", tmp_path / "no.npz", *parents)
            assert (done.code, done.out) == (3, "")
            assert str(streams[2] if not parents else tmp_path) in done.err
            assert not (tmp_path / "no.npz").exists()

    def test_missing_parent_is_what_is_reported(self, run: Run, tmp_path: Path) -> None:
        weights = {"w": random_weights(32, 32)}
        base = nnr_codec.encode(weights).data or b""
        update = nnr_codec.encode(weights, parents=[base]).data or b""
        with pytest.raises(nnr_codec.MissingParent, match="'w'"):
            nnr_codec.decode(update)

    def test_verify(self, run: Run, stream: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.npz"
        right = digest(nnr_codec.load_file(stream).items())
        wrong = "0" * 64
        done = run("nnr-decode", stream, "-o", output, "--verify", wrong)
        assert (done.code, done.out) == (4, "")
        assert right in done.err
        assert wrong in done.err
        assert str(stream) in done.err
        assert not output.exists()
        for spelling in (right, right.upper()):
            assert run("nnr-decode", stream, "-o", output, "-f", "--verify", spelling).code == 0
        done = run("nnr-decode", stream, "-o", output, "-f", "--verify", right, "--only", "*")
        assert done.code == 2

    def test_limits(self, run: Run, stream: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.npz"
        for limit, value in [
            ("max_elements", 1655), ("max-elements-per-tensor", 959), ("max_units", 6),
            ("max_unit_bytes", 100), ("max_name_bytes", 11), ("max_dimensions", 1),
            ("max_stream_bytes", stream.stat().st_size - 1),
        ]:  # fmt: skip
            done = run("nnr-decode", stream, "-o", output, "--limit", f"{limit}={value}")
            assert (done.code, done.out) == (3, "")
            assert limit.replace("-", "_") in done.err
        enough = ["--limit", "max_elements=1656", "--limit", "max_units=7"]
        assert run("nnr-decode", stream, "-o", output, *enough).code == 0

    @pytest.mark.parametrize("digest_text", ["", "abc", "0" * 63, "g" * 64, "0" * 65])
    def test_what_is_no_digest(self, run: Run, stream: Path, digest_text: str) -> None:
        done = run("nnr-decode", stream, "-o", "out.npz", "--verify", digest_text)
        assert (done.code, done.out) == (2, "")
        assert "--verify: a digest is 64 hexadecimal digits" in done.err

    @pytest.mark.parametrize(
        "text", ["max_elements", "max_elements=", "nothing=1", "max_units=-1", "max_units=²"]
    )
    def test_bad_limits(self, run: Run, stream: Path, tmp_path: Path, text: str) -> None:
        assert run("nnr-decode", stream, "-o", tmp_path / "o.npz", "--limit", text).code == 2

    def test_limits_of_many_digits(self, run: Run, stream: Path, tmp_path: Path) -> None:
        limit = "max_units=" + "9" * 5000
        done = run("nnr-decode", stream, "-o", tmp_path / "o.npz", "--limit", limit)
        assert (done.code, done.out) == (2, "")
        assert "--limit: '999" in done.err
        assert "is not a whole number from 0 to" in done.err
        assert len(done.err) < 300

    def test_threads_do_not_change_the_result(self, run: Run, model: Path, tmp_path: Path) -> None:
        stream = tmp_path / "scan.nnr"
        assert run("nnr-encode", model, "-o", stream, "--scan-order", "1").code == 0
        outputs = []
        for threads in (1, 2, 4):
            output = tmp_path / f"{threads}.safetensors"
            assert run("nnr-decode", stream, "-o", output, "--threads", threads).code == 0
            outputs.append(output.read_bytes())
        assert outputs[1:] == outputs[:1] * 2
        assert run("nnr-decode", stream, "-o", tmp_path / "o.npz", "--threads", "0").code == 2


class TestRefusals:
    @pytest.mark.parametrize("damage", ["empty", "text", "header", "truncated", "payload"])
    def test_bad_bitstreams(self, run: Run, stream: Path, tmp_path: Path, damage: str) -> None:
        good = stream.read_bytes()
        bad = {
            "empty": b"",
            "text": b"hello, world",
            "header": good[:3] + b"\7" + good[4:],  # an unknown profile
            "truncated": good[:-1],
            "payload": with_damaged_payload(good),
        }[damage]
        path, output = tmp_path / "bad.nnr", tmp_path / "out.npz"
        path.write_bytes(bad)
        output.write_bytes(b"old")
        done = run("nnr-decode", path, "-o", output, "-f")
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith(f"nnr-decode: error: bad bitstream: {path}: ")
        assert output.read_bytes() == b"old"
        assert sorted(os.listdir(tmp_path)) == [
            "bad.nnr", "model.nnr", "model.safetensors", "out.npz",
        ]  # fmt: skip

    @pytest.mark.parametrize("command", ["nnr-decode", "nnr-info"])
    @pytest.mark.parametrize("side", [2, 300])  # a first "unit" that ends beyond the file or in it
    @pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".onnx", ".zip"])
    def test_models_instead_of_bitstreams(
        self, run: Run, tmp_path: Path, suffix: str, side: int, command: str
    ) -> None:
        path = tmp_path / f"model{suffix}"
        weights = random_weights(side, side)
        if suffix == ".onnx":
            onnx = pytest.importorskip("onnx")
            tensors = [onnx.numpy_helper.from_array(weights, "w")]
            graph = onnx.helper.make_graph([], "g", [], [], initializer=tensors)
            onnx.save_model(onnx.helper.make_model(graph), path)
        elif suffix == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("weights", weights.tobytes())
        else:
            if suffix == ".pt":
                pytest.importorskip("torch")
            save(path, {"w": weights})
        output = ["-o", tmp_path / "out.npz"] if command == "nnr-decode" else []
        done = run(command, path, *output)
        assert (done.code, done.out) == (3, "")
        kind = {".safetensors": "safetensors", ".pt": "torch", ".onnx": "onnx"}.get(suffix, "npz")
        assert f"{path}: looks like a model file ({kind}), not a bitstream; nnr-encode" in done.err
        assert not (tmp_path / "out.npz").exists()

    def test_input_that_cannot_be_read(self, run: Run, tmp_path: Path) -> None:
        for path in (tmp_path / "missing.nnr", tmp_path):
            done = run("nnr-decode", path, "-o", tmp_path / "out.npz")
            assert (done.code, done.out) == (1, "")
            assert str(path) in done.err

    @pytest.mark.parametrize("name", ["out", "out.txt", "no/out.npz"])
    def test_output_that_cannot_be_written(
        self, run: Run, stream: Path, tmp_path: Path, name: str
    ) -> None:
        done = run("nnr-decode", stream, "-o", tmp_path / name)
        assert done.code == 2
        assert str(tmp_path / name) in done.err

    def test_output_is_needed(self, run: Run, stream: Path) -> None:
        assert run("nnr-decode", stream).code == 2


class TestPipes:
    def test_standard_input(self, stream: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.safetensors"
        arguments = [script("nnr-decode"), "-", "-o", str(output)]
        done = subprocess.run(
            arguments, input=stream.read_bytes(), capture_output=True, timeout=LONG, check=True
        )
        assert done.stdout.startswith(b"- -> ")
        assert_same(load(output), nnr_codec.load_file(stream))

    def test_truncated_standard_input(self, stream: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.safetensors"
        arguments = [script("nnr-decode"), "-", "-o", str(output)]
        for data in (stream.read_bytes()[:-1], b""):
            done = subprocess.run(arguments, input=data, capture_output=True, timeout=LONG)
            assert done.returncode == 3
            assert not output.exists()

    @pytest.mark.parametrize("limit", ["max_units=1000", "max_stream_bytes=100000"])
    def test_endless_standard_input(self, tmp_path: Path, limit: str) -> None:
        """Of what nobody asked for, no more is copied than the limits allow."""
        arguments = [script("nnr-decode"), "-", "-o", str(tmp_path / "o.npz"), "--limit", limit]
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(arguments, bufsize=0, **pipes) as process:
            process.stdin.write(write_record(StartUnit()) + write_record(ModelParameterSet()))
            with suppress(BrokenPipeError):
                while True:
                    process.stdin.write(write_unit(FIRST_PRIVATE_UNIT_TYPE, bytes(1000)))
            error = process.stderr.read().decode()
            assert process.wait(LONG) == 3
        assert error.startswith(f"nnr-decode: error: bad bitstream: <stdin>: {limit.split('=')[0]}")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("unit_bytes", ["small", "larger than a pipe"])
    def test_tensors_come_before_the_end(self, unit_bytes: str) -> None:
        arrays = small_model()
        if unit_bytes != "small":
            arrays["second.weight"] = random_weights(300, 400)
        data = nnr_codec.encode(arrays, options=EncodeOptions(group=False)).data or b""
        pieces = _by_tensor(data)
        assert [len(piece) > 2**16 for piece in pieces].count(True) == (unit_bytes != "small")
        expected = nnr_codec.decode(data)
        reading, writing = os.pipe()
        with ThreadPoolExecutor(1) as reader, os.fdopen(reading, "rb") as pipe:
            tensors = StreamDecoder().tensors(pipe)
            with os.fdopen(writing, "wb", buffering=0) as feed:
                for piece, name in zip(pieces, arrays, strict=True):
                    tensor = reader.submit(lambda: next(tensors))
                    _write_all(feed, piece)
                    found = _result(tensor, feed)  # nothing more is in the pipe, which is open
                    assert found.name == name
                    np.testing.assert_array_equal(found.values, expected[name])
            assert reader.submit(lambda: next(tensors, None)).result(LONG) is None

    def test_file_is_read_no_further_than_its_units(self) -> None:
        data = nnr_codec.encode(small_model(), options=EncodeOptions(group=False)).data or b""
        file = io.BytesIO(data)
        tensors = StreamDecoder().tensors(file)
        positions = []
        for _ in tensors:
            positions.append(file.tell())
        ends = np.cumsum([len(piece) for piece in _by_tensor(data)])
        assert positions == ends.tolist()


def _by_tensor(data: bytes) -> list[bytes]:
    """Cut a stream into pieces that each end with a data unit."""
    pieces = [b""]
    for parsed in parse_units(data):
        pieces[-1] += bytes(parsed.unit.data)
        if isinstance(parsed.record, DataUnit):
            pieces.append(b"")
    assert pieces.pop() == b""
    return pieces


def _write_all(feed: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[feed.write(view) :]


def _result(future: Future[DecodedTensor], feed: BinaryIO) -> DecodedTensor:
    """Return the future's result; if it does not come, end the pipe so that the reader ends."""
    try:
        return future.result(20)
    except FutureTimeoutError:
        feed.close()
        raise
