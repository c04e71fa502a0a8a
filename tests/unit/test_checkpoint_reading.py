"""Model files: lazy reading, and the refusal of files that are damaged or cannot be coded."""

from __future__ import annotations

import io
import json
import os
import struct
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from checkpoint_support import SUFFIXES, assert_refused, assert_same, each_format, loaded, some

from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.errors import InvalidModel
from nnr_codec.factorization.files import with_weights


class TestReading:
    @each_format
    def test_format_is_told_by_content(self, tmp_path: Path, suffix: str) -> None:
        save_checkpoint(tmp_path / f"m{suffix}", some())
        for name in ["m", "m.safetensors", "m.npz", "m.pt"]:
            os.replace(next(tmp_path.iterdir()), tmp_path / name)
            assert_same(loaded(tmp_path / name), some())

    @each_format
    def test_description_without_values(self, tmp_path: Path, suffix: str) -> None:
        save_checkpoint(tmp_path / f"m{suffix}", some())
        with open_checkpoint(str(tmp_path / f"m{suffix}")) as model:
            weight = model["z.weight"]
            assert (weight.shape, weight.dtype, weight.size) == ((2, 3, 4), np.float32, 24)
            assert weight.nbytes == 96
            roles = {name: parameter.role for name, parameter in model.items()}
        assert roles == {
            "z.weight": "weight", "a.bias": "nonweight", "scalar": "nonweight", "empty": "weight",
        }  # fmt: skip

    @each_format
    def test_closed_model_cannot_be_read(self, tmp_path: Path, suffix: str) -> None:
        save_checkpoint(tmp_path / f"m{suffix}", some())
        with open_checkpoint(tmp_path / f"m{suffix}") as model:
            pass
        model.close()
        with pytest.raises(InvalidModel):
            model["z.weight"].read()

    @each_format
    def test_threads_read_the_same(self, tmp_path: Path, suffix: str) -> None:
        tensors = {str(n): np.full((300, 300), n, np.float32) for n in range(12)}
        save_checkpoint(tmp_path / f"m{suffix}", tensors)
        wrong: list[str] = []
        with open_checkpoint(tmp_path / f"m{suffix}") as model:

            def check() -> None:
                wrong.extend(n for n, values in model.arrays() if (values != int(n)).any())

            threads = [threading.Thread(target=check) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []

    def test_safetensors_order_is_that_of_the_data(self, tmp_path: Path) -> None:
        entry = {"dtype": "U8", "shape": [1]}
        header = {
            "second": {**entry, "data_offsets": [1, 2]},
            "first": {**entry, "data_offsets": [0, 1]},
            "none": {"dtype": "U8", "shape": [0], "data_offsets": [1, 1]},
        }
        path = write_safetensors(tmp_path, json.dumps(header), b"\1\2")
        found = loaded(path)
        assert list(found) == ["first", "none", "second"]
        assert found["second"] == 2

    def test_output_may_replace_its_own_input(self, tmp_path: Path) -> None:
        for suffix in SUFFIXES:
            path = tmp_path / f"m{suffix}"
            save_checkpoint(path, some())
            with open_checkpoint(path) as model:
                save_checkpoint(path, model, overwrite=True)
            assert_same(loaded(path), some())


def write_safetensors(folder: Path, header: str | bytes, data: bytes = b"") -> Path:
    encoded = header.encode() if isinstance(header, str) else header
    path = folder / "made.safetensors"
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def write_zip(folder: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "made.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def npy_header(shape: str, descr: str = "'<f4'", version: bytes = b"\1\0") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header


class TestRefusals:
    def test_what_is_no_file(self, tmp_path: Path) -> None:
        assert_refused(tmp_path, "is a directory")
        assert_refused(tmp_path / "missing", "No such file")
        assert_refused(f"{tmp_path}/nul\0", "cannot be read")
        os.mkfifo(tmp_path / "pipe")
        assert_refused(tmp_path / "pipe", "not a regular file")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
    def test_unreadable(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "m.npz", some())
        (tmp_path / "m.npz").chmod(0)
        assert_refused(tmp_path / "m.npz", "Permission denied")

    @pytest.mark.parametrize(
        "content", [b"", b"PK", b"\x93NUMPY\1\0", b"\x80\x02}q\x00.", b"\0" * 50]
    )
    def test_unknown_format(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "file").write_bytes(content)
        assert_refused(tmp_path / "file", "neither")

    @each_format
    def test_every_truncation(self, tmp_path: Path, suffix: str) -> None:
        save_checkpoint(tmp_path / f"m{suffix}", {"w": np.ones((2, 2), np.float32)})
        whole = (tmp_path / f"m{suffix}").read_bytes()
        for size in range(len(whole)):
            (tmp_path / "cut").write_bytes(whole[:size])
            assert_refused(tmp_path / "cut")

    @each_format
    def test_every_changed_byte(self, tmp_path: Path, suffix: str) -> None:
        save_checkpoint(tmp_path / f"m{suffix}", {"w": np.ones((2, 2), np.float32)})
        whole = (tmp_path / f"m{suffix}").read_bytes()
        refused = 0
        for place in range(len(whole)):
            for change in (0x01, 0x80, 0xFF):
                damaged = bytearray(whole)
                damaged[place] ^= change
                (tmp_path / "bad").write_bytes(damaged)
                try:
                    loaded(tmp_path / "bad")
                except InvalidModel:
                    refused += 1
        assert refused > len(whole)  # nothing but InvalidModel came out, and often

    @pytest.mark.parametrize(
        ("header", "data", "reason"),
        [
            ('{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"1", "'w'.*F4|damaged"),
            ('{"w":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}', b"12345678", "'w'.*C64"),
            ('{"w":{"dtype":"Q9","shape":[1],"data_offsets":[0,1]}}', b"1", "damaged"),
            ('{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}', b"1", "damaged"),
            ('{"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"12", "damaged"),
            ('{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"12", "damaged"),
            ('{"w":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}', b"1", "damaged"),
            ('{"w":{"dtype":"U8"}}', b"", "damaged"),
            ('{"w":1}', b"", "damaged"),
            ("{" * 2000, b"", "damaged"),
            ('{"w', b"", "damaged"),
            (b'{"\xff":1}', b"", "damaged"),
            (
                '{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                '"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
                b"1",
                "damaged.*twice|damaged.*duplicate",
            ),
            (
                f'{{"w":{{"dtype":"U8","shape":[0,{2**63}],"data_offsets":[0,0]}}}}',
                b"",
                "'w'|damaged",
            ),
        ],
    )
    def test_safetensors(
        self, tmp_path: Path, header: str | bytes, data: bytes, reason: str
    ) -> None:
        assert_refused(write_safetensors(tmp_path, header, data), reason)

    @pytest.mark.parametrize(
        ("array", "reason"),
        [
            (np.array([{}]), "'w'.*object"),
            (np.zeros(2, [("a", "f4")]), "'w'.*structured"),
            (np.zeros(2, complex), "'w'.*complex128"),
            (np.array(["text"]), "'w'.*str"),
            (np.array(b"bytes"), "'w'.*bytes"),
            (np.zeros(2, "M8[s]"), "'w'.*datetime"),
        ],
    )
    def test_npz_element_types(self, tmp_path: Path, array: np.ndarray, reason: str) -> None:
        assert_refused(write_zip(tmp_path, ("w.npy", npy(array))), reason)

    def test_npz_leaves_out_what_is_no_tensor(self, tmp_path: Path) -> None:
        beside = {"labels": np.array(["cat", "dog"]), "code": np.array([b"x"])}
        beside |= {"options": np.array({"a": 1}), "when": np.zeros(2, "M8[s]")}
        arrays = {**beside, "w": np.ones(3, np.float32)}
        path = write_zip(tmp_path, *((f"{name}.npy", npy(array)) for name, array in arrays.items()))
        with open_checkpoint(path) as model:
            assert list(model) == ["w"]
            assert all(repr(name) in model.notes[0] for name in beside)

    @pytest.mark.parametrize(
        ("member", "reason"),
        [
            (b"", "damaged"),
            (b"not an array", "damaged"),
            (npy(np.ones(3, np.float32))[:-1], "do not match"),
            (npy(np.ones(3, np.float32)) + b"x", "do not match"),
            (npy_header("(1000000000000,)"), "do not match"),
            (npy_header("(-1, -1)") + b"1234", "do not match"),
            (npy_header("(1,)", "'f4, f4'") + bytes(8), "structured"),
            (npy_header("(1,)", "'nonsense'"), "damaged"),
            (npy_header("(" * 500), "damaged"),
            (npy_header("(1,)", version=b"\3\0") + bytes(4), "damaged.*version"),
            (npy_header("(1,)", version=b"\7\0") + bytes(4), "damaged.*version"),
            (npy_header("(" + "1," * 70 + ")") + bytes(4), "damaged"),
        ],
    )
    def test_npz_members(self, tmp_path: Path, member: bytes, reason: str) -> None:
        assert_refused(write_zip(tmp_path, ("w.npy", member)), f"'w'.*{reason}")

    def test_npz_archives(self, tmp_path: Path) -> None:
        one = npy(np.ones(1, np.float32))
        with pytest.warns(UserWarning, match="Duplicate"):
            path = write_zip(tmp_path, ("w.npy", one), ("w.npy", one))
        assert_refused(path, "'w'.*two members")
        assert_refused(write_zip(tmp_path, ("archive/data.txt", b".")), r"not a \.npy array")
        assert_refused(write_zip(tmp_path, ("folder/", b"")), r"not a \.npy array")
        path = write_zip(tmp_path, ("w.npy", one), method=zipfile.ZIP_BZIP2)
        assert_refused(path, "compression method 12")

    def test_npz_checksum(self, tmp_path: Path) -> None:
        path = write_zip(tmp_path, ("w.npy", npy(np.full(4, 3, np.uint8))))
        path.write_bytes(path.read_bytes().replace(b"\3\3\3\3", b"\3\3\3\2"))
        assert_refused(path, "'w'.*CRC")


class TestBombs:
    """Archives of some kilobytes that would become gigabytes."""

    def refused(self, path: Path, reason: str) -> None:
        tracemalloc.start()
        try:
            assert_refused(path, reason)
            assert tracemalloc.get_traced_memory()[1] < 2**24
        finally:
            tracemalloc.stop()

    def test_npz_texts(self, tmp_path: Path) -> None:
        def text(characters: int) -> bytes:
            return npy_header("()", f"'<U{characters}'") + b"a\0\0\0" * characters

        large = ("large.npy", text(2**23 + 1))
        path = write_zip(tmp_path, large, method=zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 2**18
        self.refused(path, "'large': .*text entries of more than 8388608 characters")
        many = [(f"t{index}.npy", text(2**21)) for index in range(5)]
        path = write_zip(tmp_path, *many, method=zipfile.ZIP_DEFLATED)
        assert_refused(path, "'t4': .*text entries of more")
        path = write_zip(tmp_path, *many[:4], method=zipfile.ZIP_DEFLATED)
        with open_checkpoint(path) as model:
            assert [len(entry) for entry in model.metadata.values()] == [2**21] * 4

    def test_npz_headers(self, tmp_path: Path) -> None:
        member = b"\x93NUMPY\2\0" + struct.pack("<I", 2**26) + b" " * 2**26
        path = write_zip(tmp_path, ("w.npy", member), method=zipfile.ZIP_DEFLATED)
        self.refused(path, "'w': .*an array header of 67108864 bytes")

    def test_npz_headers_of_version_2(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.lib.format.write_array(stream, array, version=(2, 0))
        path = write_zip(tmp_path, ("w.npy", stream.getvalue()))
        with open_checkpoint(path) as model:
            assert np.array_equal(model["w"].read(), array)

    def test_compressed_pickles(self, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        path = tmp_path / "m.pt"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("m/data.pkl", b"\x80\x02X" + struct.pack("<I", 2**27) + b"a" * 2**27)
            archive.writestr("m/version", b"3")
            archive.writestr("m/byteorder", b"little")
        self.refused(path, "a compressed pickle of 134217735 bytes")

    @pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
    def test_maps_of_factors(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"m{suffix}"
        text = '{"nnr_model_map":1,"extras":[' + "[]," * (2**23 // 3) + "[]]}"
        save_checkpoint(path, some(), metadata={"nnr_model_map": text[: 2**23]})
        with open_checkpoint(path) as model, pytest.raises(InvalidModel, match="model map"):
            with_weights(model)
        if suffix == ".npz":
            return
        save_checkpoint(path, some(), metadata={"nnr_model_map": text}, overwrite=True)
        with open_checkpoint(path) as model:
            tracemalloc.start()
            try:
                with pytest.raises(InvalidModel, match=r"its model map: \d+ characters"):
                    with_weights(model)
                assert tracemalloc.get_traced_memory()[1] < 2**20
            finally:
                tracemalloc.stop()
