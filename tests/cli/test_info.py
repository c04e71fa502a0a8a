"""nnr-info: what it shows, without decoding, of streams whole and damaged."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from cli_support import (
    LONG,
    Run,
    decomposed_stream,
    factored_stream,
    random_weights,
    run_script,
    save,
    script,
    small_model,
    with_damaged_payload,
)

import nnr_codec
from nnr_codec.bitstream import (
    Context,
    DataUnit,
    ModelParameterSet,
    PayloadType,
    StartUnit,
    Topology,
    write_data_unit,
    write_record,
    write_unit,
)
from nnr_codec.bitstream.codes import FIRST_PRIVATE_UNIT_TYPE
from nnr_codec.support.digest import digest

COLUMNS = ["tensor", "shape", "kind", "bytes", "bit/weight", "qp", "N", "scan", "dq"]


class TestTable:
    def test_default(self, stream: Path) -> None:
        done = run_script("nnr-info", stream)
        assert (done.returncode, done.stderr) == (0, "")
        header, *rows, last = done.stdout.splitlines()
        assert header.split() == COLUMNS
        cells = [row.split() for row in rows]
        assert [row[:3] for row in cells] == [
            ["first.weight", "40x24", "float"],
            ["first.bias", "40", "float"],
            ["second.weight", "16x40", "float"],
            ["second.bias", "16", "float"],
        ]
        assert [row[5:] for row in cells] == [
            ["-38", "1", "0", "yes"],
            ["-75", "1", "0", "yes"],
        ] * 2
        size = stream.stat().st_size
        assert last.startswith(
            f"{stream}: profile 0, 7 units, 4 tensors, 1656 weights, 6624 -> {size}"
        )
        assert sum(int(row[3]) for row in cells) == size - (4 + 8 + 6)  # start unit, MPS, topology

    def test_kinds(self, run: Run, tmp_path: Path) -> None:
        arrays = {
            "raw": np.array([[1.1, np.nan], [0.3, -0.0]], np.float32),
            "integers": np.arange(6).reshape(2, 3),
            "scalar": np.float16(3).reshape(()),
        }
        model = save(tmp_path / "m.safetensors", arrays)
        assert run("nnr-encode", model, "-o", tmp_path / "m.nnr", "--exclude", "raw").code == 0
        rows = [line.split() for line in run("nnr-info", tmp_path / "m.nnr").out.splitlines()[1:-1]]
        by_name = {row[0]: row for row in rows}
        assert by_name["raw"][1:4] == ["2x2", "raw", "28"]
        assert by_name["raw"][5:] == ["-", "-", "-", "-"]
        assert by_name["integers"][1:3] == ["2x3", "int"]
        assert by_name["integers"][5:] == ["-", "2", "0", "no"]
        assert by_name["scalar"][1:3] == ["1", "float"]

    def test_blocks_show_their_tensors(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "dc.nnr").write_bytes(decomposed_stream()[0])
        rows = [line.split() for line in run("nnr-info", tmp_path / "dc.nnr").out.splitlines()]
        assert [row[:4] for row in rows[1 : rows.index([])]] == [
            ["layer_G", "6x2", "block", "G"], ["layer_H", "2x8", "block", "H"],
        ]  # fmt: skip

    def test_weights_as_factors(self, run: Run, tmp_path: Path) -> None:
        """A block, and tensors that the map joins, one of them shared: with totals."""
        path = tmp_path / "f.nnr"
        path.write_bytes(factored_stream())
        lines = run("nnr-info", path).out.splitlines()
        start = lines.index("")
        assert [line.split() for line in lines[start + 1 : -2]] == [
            ["weight", "shape", "form", "ranks", "parameters", "as", "factors", "bytes"],
            ["a", "6x8", "lr", "2", "48", "28", lines[start + 2].split()[-1]],
            ["b", "6x8", "joint_right", "2", "48", "28", lines[start + 3].split()[-1]],
            ["c", "6x8", "joint_right", "2", "48", "16", lines[start + 4].split()[-1]],
            ["whole", "model", "150", "78"],
        ]
        info = json.loads(run("nnr-info", path, "--json").out)
        assert (info["elements"], info["parameters"], info["original_bytes"]) == (150, 78, 600)
        assert [weight["factors"] for weight in info["factorizations"]] == [
            ["a_G", "a_H"], ["b.factor0", "b.factor1"], ["c.factor0", "b.factor1"],
        ]  # fmt: skip
        own = sum(weight["bytes"] for weight in info["factorizations"])
        bias = info["per_tensor"][-1]
        assert bias["name"] == "d"
        assert own + bias["bytes"] + info["header_bytes"] == info["bytes"] == path.stat().st_size

    def test_names_cannot_control_the_terminal(self, run: Run, tmp_path: Path) -> None:
        name = "\x1b[31mred\r\n\x07\u202etxet"
        model = save(tmp_path / "m.safetensors", {name: np.ones((2, 2), np.float32)})
        assert run("nnr-encode", model, "-o", tmp_path / "m.nnr", "-q").code == 0
        for options in ([], ["--units"]):
            done = run("nnr-info", tmp_path / "m.nnr", *options)
            assert done.code == 0
            assert r"\x1b[31mred\r\n\x07\u202etxet" in done.out
            assert all(c.isprintable() for c in done.out.replace("\n", ""))
        done = run("nnr-info", tmp_path / "m.nnr", "--json")
        assert json.loads(done.out)["per_tensor"][0]["name"] == name
        assert "\x1b" not in done.out
        assert list(nnr_codec.load_file(tmp_path / "m.nnr")) == [name]

    def test_reader_that_goes_away(self, stream: Path) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "wb") as closed:
            done = subprocess.run(
                [script("nnr-info"), stream, "--units"], stdout=closed, stderr=subprocess.PIPE,
                timeout=LONG,
            )  # fmt: skip
        assert (done.returncode, done.stderr) == (1, b"")


class TestJson:
    def test_alone_on_stdout(self, stream: Path) -> None:
        done = run_script("nnr-info", stream, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        info = json.loads(done.stdout)
        assert info["input"] == str(stream)
        assert info["bytes"] == stream.stat().st_size
        assert info["bits_per_weight"] == pytest.approx(8 * info["bytes"] / 1656)
        assert (info["units"], info["tensors"], info["profile"]) == (7, 4, 0)
        assert [tensor["unit"] for tensor in info["per_tensor"]] == [3, 4, 5, 6]
        assert "unit_list" not in info
        assert "digest" not in info

    def test_numbers_that_json_lacks(self, run: Run, tmp_path: Path) -> None:
        mps = ModelParameterSet(validation_set_performance=float("nan"))
        (tmp_path / "nan.nnr").write_bytes(write_record(StartUnit(1)) + write_record(mps, 1))
        done = run("nnr-info", tmp_path / "nan.nnr", "--json", "--units")
        json.loads(done.out, parse_constant=pytest.fail)


class TestUnits:
    def test_every_element_is_listed(self, run: Run, stream: Path) -> None:
        done = run("nnr-info", stream, "--units")
        lines = done.out.splitlines()
        assert lines[0] == "unit 0 (NNR_STR), 4 bytes at 0"
        labels = [line.split(",")[0] for line in lines if line.startswith("unit")]
        kinds = ["NNR_STR", "NNR_MPS", "NNR_TPL", *["NNR_NDU"] * 4]
        assert labels == [f"unit {index} ({kind})" for index, kind in enumerate(kinds)]
        cells = [tuple(line.split()) for line in lines]
        assert ("topology_elem_id", "st(v)", "second.weight") in cells
        assert ("mps_qp_density", "u(3)", "2") in cells
        assert ("tensor_dimensions", "ue(7)", "24") in cells

    def test_json(self, run: Run, stream: Path) -> None:
        units = json.loads(run("nnr-info", stream, "--units", "--json").out)["unit_list"]
        assert sum(unit["bytes"] for unit in units) == stream.stat().st_size
        assert [unit["offset"] for unit in units][:4] == [0, 4, 12, 18]
        elements = {e["name"]: e["value"] for e in units[3]["elements"]}
        assert elements["topology_elem_id"] == "first.weight"
        assert 0 < units[3]["payload_bytes"] < units[3]["bytes"]

    def test_long_values_are_cut(self, run: Run, tmp_path: Path) -> None:
        stream = write_record(StartUnit()) + write_record(Topology(topology_data="t" * 5000))
        (tmp_path / "t.nnr").write_bytes(stream + write_unit(40, b"private"))
        out = run("nnr-info", tmp_path / "t.nnr", "--units").out
        assert "t" * 100 in out
        assert max(map(len, out.splitlines())) < 400
        assert "unit 2 (private 40), 10 bytes" in out
        listed = json.loads(run("nnr-info", tmp_path / "t.nnr", "--units", "--json").out)
        assert "t" * 5000 in str(listed["unit_list"][1])


class TestDigest:
    def test_is_that_of_the_decoded_tensors(self, run: Run, stream: Path) -> None:
        expected = digest(nnr_codec.load_file(stream).items())
        for threads in (1, 3):
            out = run("nnr-info", stream, "--digest", "--threads", threads).out
            assert out == f"{expected}\n"
        assert json.loads(run("nnr-info", stream, "--digest", "--json").out)["digest"] == expected

    def test_units_beside_it_are_for_json(self, run: Run, stream: Path) -> None:
        done = run("nnr-info", stream, "--digest", "--units")
        assert (done.code, done.out) == (2, "")
        found = json.loads(run("nnr-info", stream, "--digest", "--units", "--json").out)
        assert {"digest", "unit_list"} <= found.keys()

    def test_as_the_guide_has_it(self, stream: Path, tmp_path: Path) -> None:
        """DIGEST=$(nnr-info --digest model.nnr), and then --verify "$DIGEST"."""
        found = run_script("nnr-info", "--digest", stream).stdout.strip()
        done = run_script("nnr-decode", stream, "-o", tmp_path / "o.npz", "--verify", found)
        assert done.returncode == 0

    def test_verifies_what_nnr_decode_writes(self, run: Run, stream: Path, tmp_path: Path) -> None:
        found = json.loads(run("nnr-info", stream, "--digest", "--json").out)["digest"]
        output = tmp_path / "out.npz"
        assert run("nnr-decode", stream, "-o", output, "--verify", found).code == 0
        changed = nnr_codec.encode({**small_model(), "second.bias": np.zeros(16, np.float32)})
        stream.write_bytes(changed.data or b"")
        assert run("nnr-decode", stream, "-o", output, "-f", "--verify", found).code == 4

    def test_of_an_update(self, run: Run, tmp_path: Path) -> None:
        weights = {"w": random_weights(32, 32)}
        nnr_codec.save_file(weights, tmp_path / "base.nnr")
        nnr_codec.encode(weights, tmp_path / "update.nnr", parents=[tmp_path / "base.nnr"])
        assert run("nnr-info", tmp_path / "update.nnr").code == 0  # headers need no parent
        assert run("nnr-info", tmp_path / "update.nnr", "--digest").code == 3
        options = ["--digest", "--json", "--parent", tmp_path / "base.nnr"]
        done = run("nnr-info", tmp_path / "update.nnr", *options)
        expected = digest(nnr_codec.load_file(tmp_path / "base.nnr").items())
        assert json.loads(done.out)["digest"] == expected  # the same tensors


class TestDamage:
    def test_payloads_are_not_decoded(self, run: Run, stream: Path) -> None:
        whole = run("nnr-info", stream).out
        stream.write_bytes(with_damaged_payload(stream.read_bytes()))
        assert run("nnr-info", stream).out == whole
        assert run("nnr-info", stream, "--units").code == 0
        assert run("nnr-info", stream, "--digest").code == 3

    @pytest.mark.parametrize("data", [b"", b"hello, world", b"\x00\x04\x02\x09"])
    def test_bad_bitstreams(self, run: Run, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "bad.nnr"
        path.write_bytes(data)
        done = run("nnr-info", path)
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith(f"nnr-info: error: bad bitstream: {path}: ")

    def test_truncated(self, run: Run, stream: Path) -> None:
        stream.write_bytes(stream.read_bytes()[:-1])
        for options in ([], ["--json"]):
            done = run("nnr-info", stream, *options)
            assert (done.code, done.out) == (3, "")
            assert "unit 6" in done.err

    def test_missing_file(self, run: Run, tmp_path: Path) -> None:
        done = run("nnr-info", tmp_path / "missing.nnr")
        assert (done.code, done.out) == (1, "")
        assert str(tmp_path / "missing.nnr") in done.err

    def test_limits(self, run: Run, stream: Path) -> None:
        done = run("nnr-info", stream, "--limit", "max_units=6")
        assert (done.code, done.out) == (3, "")
        assert "max_units" in done.err
        assert run("nnr-info", stream, "--limit", "max_units=7").code == 0
        assert run("nnr-info", stream, "--limit", "units=7").code == 2


class TestPipes:
    """Standard input is read unit by unit, and of the units no payload is kept."""

    def fed(self, *arguments: str, pieces: Iterable[bytes]) -> tuple[int, str, str, int]:
        """Run the command; return its exit code, its output, and its memory at most, in bytes."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen([script("nnr-info"), "-", *arguments], **pipes) as process:
            with suppress(BrokenPipeError):
                for piece in pieces:
                    process.stdin.write(piece)
            with suppress(BrokenPipeError):
                process.stdin.close()
            out, err = process.stdout.read().decode(), process.stderr.read().decode()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, out, err, 1024 * usage.ru_maxrss

    def test_endless_text(self) -> None:
        code, out, err, _ = self.fed(pieces=itertools.repeat(b"y\n" * 2**15))
        assert (code, out) == (3, "")
        assert "no NNR bitstream" in err

    @pytest.mark.skipif(sys.platform != "linux", reason="of memory other systems say other units")
    def test_payloads_are_not_kept(self) -> None:
        start = write_record(StartUnit()) + write_record(ModelParameterSet())
        private = write_unit(FIRST_PRIVATE_UNIT_TYPE, bytes(2**22))
        record = DataUnit(PayloadType.RAW_FLOAT, ["w"], tensor_dimensions=[2**20])
        unit = write_data_unit(record, bytes(2**22), Context(0, ModelParameterSet()))
        code, out, err, little = self.fed(pieces=[start, unit])
        assert (code, err) == (0, "")
        code, out, err, much = self.fed(pieces=[start, *[private] * 40, unit])
        assert (code, err) == (0, "")
        assert "1 tensor, 1048576 weights" in out
        assert much - little < 2**25  # 160 MiB came

    def test_endless_units(self) -> None:
        start = write_record(StartUnit()) + write_record(ModelParameterSet())
        private = write_unit(FIRST_PRIVATE_UNIT_TYPE, bytes(10))
        pieces = itertools.chain([start], itertools.repeat(private * 100))
        code, out, err, _ = self.fed("--limit", "max_units=5000", pieces=pieces)
        assert (code, out) == (3, "")
        assert "max_units" in err

    def test_digest(self, stream: Path) -> None:
        data = stream.read_bytes()
        expected = digest(nnr_codec.decode(data).items())
        assert self.fed("--digest", pieces=[data])[:3] == (0, expected + "\n", "")
        code, out, _, _ = self.fed("--digest", "--json", "--units", pieces=[data])
        found = json.loads(out)
        assert (code, found["digest"], len(found["unit_list"])) == (0, expected, 7)

    def test_named_pipe(self, run: Run, stream: Path, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with ThreadPoolExecutor(1) as feeder:
            for options in ([], ["--digest"]):
                expected = run("nnr-info", stream, *options).out
                feeder.submit((tmp_path / "pipe").write_bytes, stream.read_bytes())
                found = run("nnr-info", tmp_path / "pipe", *options)
                assert found.out == expected.replace(str(stream), str(tmp_path / "pipe"))
