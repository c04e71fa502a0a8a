"""Model files: round trips, agreement with the other readers and writers, and refusals."""

from __future__ import annotations

import io
import json
import os
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.model import Model, Parameter

SUFFIXES = [".safetensors", ".npz"]
DTYPES = ["bool", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
each_format = pytest.mark.parametrize("suffix", SUFFIXES)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
odd_names = st.sampled_from(
    [
        "",
        "/",
        "a/b",
        "../up",
        "/etc/passwd",
        "..",
        ".npy",
        "C:\\x",
        "layer.0.weight",
        "ß→漢",
        "\n",
        ".",
    ]
)
arrays = hnp.arrays(
    st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
)
models = st.dictionaries(text | odd_names, arrays, max_size=6)
# The folder of a test is shared by its examples, which write the same file again and again.
in_one_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


def for_npz(name: str) -> str:
    """Make a name that an archive can hold of any text."""
    return name.replace("\0", "0").removesuffix(".npy")


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name  # NaNs too, bit by bit


def loaded(path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(path) as model:
        return dict(model.arrays())


def some() -> dict[str, np.ndarray]:
    return {
        "z.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "a.bias": np.array([1, -2, 3], dtype=np.int8),
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 3), np.float16),
    }


class TestRoundTrip:
    @given(tensors=models)
    @in_one_folder
    def test_safetensors(self, tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
        tensors.pop("__metadata__", None)
        path = tmp_path / "model.safetensors"
        save_checkpoint(path, tensors, overwrite=True)
        found = loaded(path)
        assert list(found) == list(tensors)
        assert_same(found, tensors)
        assert_same(safetensors.numpy.load_file(path), tensors)

    @given(tensors=models)
    @in_one_folder
    def test_npz(self, tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
        tensors = {for_npz(name): array for name, array in tensors.items()}
        path = tmp_path / "model.npz"
        save_checkpoint(path, tensors, overwrite=True)
        found = loaded(path)
        assert list(found) == list(tensors)
        assert_same(found, tensors)
        with np.load(path, allow_pickle=False) as archive:
            assert archive.files == list(tensors)
            assert_same({name: archive[name] for name in archive.files}, tensors)
        assert os.listdir(tmp_path) == ["model.npz"]  # nothing is extracted

    @given(tensors=models)
    @in_one_folder
    def test_files_of_the_safetensors_package(
        self, tensors: dict[str, np.ndarray], tmp_path: Path
    ) -> None:
        tensors.pop("__metadata__", None)
        path = tmp_path / "model.safetensors"
        safetensors.numpy.save_file(tensors, path, metadata={"a": "b"})
        assert_same(loaded(path), tensors)
        with open_checkpoint(path) as model:
            assert model.metadata == {"a": "b"}

    @given(tensors=models, compressed=st.booleans())
    @in_one_folder
    def test_files_of_numpy(
        self, tensors: dict[str, np.ndarray], compressed: bool, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.npz"
        names = [for_npz(name) for name in tensors]
        tensors = dict(zip(names, tensors.values(), strict=True))
        tensors.pop("file", None)  # what savez calls its own parameter
        (np.savez_compressed if compressed else np.savez)(path, **tensors)
        found = loaded(path)
        assert list(found) == list(tensors)
        assert_same(found, tensors)

    @each_format
    def test_metadata(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"model{suffix}"
        metadata = {"nnr_model_map": '{"version": 1}', "ß": "漢\n", "none": ""}
        save_checkpoint(path, some(), metadata=metadata)
        with open_checkpoint(path) as model:
            assert model.metadata == metadata
            assert model.names() == list(some())

    @each_format
    def test_same_bytes_every_time(self, tmp_path: Path, suffix: str) -> None:
        paths = [tmp_path / f"{number}{suffix}" for number in range(2)]
        for path in paths:
            save_checkpoint(path, some())
        assert paths[0].read_bytes() == paths[1].read_bytes()

    @each_format
    @pytest.mark.parametrize("layout", ["big-endian", "column-major", "strided"])
    def test_memory_layout_does_not_matter(self, tmp_path: Path, suffix: str, layout: str) -> None:
        plain = np.arange(6, dtype=np.float32).reshape(2, 3)
        array = {
            "big-endian": plain.astype(">f4"),
            "column-major": np.asfortranarray(plain),
            "strided": np.repeat(plain, 2, axis=1)[:, ::2],
        }[layout]
        save_checkpoint(tmp_path / f"m{suffix}", {"w": array})
        assert_same(loaded(tmp_path / f"m{suffix}"), {"w": plain})

    def test_other_layouts_in_npz_are_read(self, tmp_path: Path) -> None:
        plain = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.savez(tmp_path / "m.npz", big=plain.astype(">f4"), fortran=np.asfortranarray(plain))
        found = loaded(tmp_path / "m.npz")
        assert_same(found, {"big": plain, "fortran": plain})
        assert all(array.flags.c_contiguous for array in found.values())


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


def assert_refused(path: Path | str, reason: str | None = None) -> None:
    with pytest.raises(InvalidModel, match=reason) as caught:
        loaded(path)
    assert os.path.basename(path).rstrip("\0") in str(caught.value)


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
            ('{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}', b"12", "'w'.*BF16"),
            ('{"w":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}', b"1", "'w'.*F8_E4M3"),
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
        assert_refused(write_zip(tmp_path, ("archive/data.pkl", b".")), r"not a \.npy array")
        assert_refused(write_zip(tmp_path, ("folder/", b"")), r"not a \.npy array")
        path = write_zip(tmp_path, ("w.npy", one), method=zipfile.ZIP_BZIP2)
        assert_refused(path, "compression method 12")

    def test_npz_checksum(self, tmp_path: Path) -> None:
        path = write_zip(tmp_path, ("w.npy", npy(np.full(4, 3, np.uint8))))
        path.write_bytes(path.read_bytes().replace(b"\3\3\3\3", b"\3\3\3\2"))
        assert_refused(path, "'w'.*CRC")


class TestWriting:
    @each_format
    @pytest.mark.parametrize(
        ("tensors", "name"),
        [
            ({"w": np.zeros(1, complex)}, "w"),
            ({"w": np.array([{}])}, "w"),
            ({"w": np.zeros(1, np.longdouble)}, "w"),
            ({"w": np.zeros(1, [("a", "f4")])}, "w"),
            ({"w": [1.0]}, "w"),
            ({"\ud800": np.zeros(1)}, "\ud800"),
            ({3: np.zeros(1)}, "3"),
            ([Parameter.from_array("w", np.zeros(1))] * 2, "w"),
        ],
    )
    def test_refused_tensors(self, tmp_path: Path, suffix: str, tensors, name: str) -> None:
        with pytest.raises(InvalidModel) as caught:
            save_checkpoint(tmp_path / f"m{suffix}", tensors)
        assert caught.value.parameter == name
        assert os.listdir(tmp_path) == []

    def test_names_that_a_format_cannot_hold(self, tmp_path: Path) -> None:
        one = np.ones(1, np.float32)
        with pytest.raises(InvalidModel, match="reserve"):
            save_checkpoint(tmp_path / "m.safetensors", {"__metadata__": one})
        for names in (["nul\0"], ["n" * 65536], ["w.npy", "w"]):
            with pytest.raises(InvalidModel):
                save_checkpoint(tmp_path / "m.npz", dict.fromkeys(names, one))
        with pytest.raises(InvalidOptions):
            save_checkpoint(tmp_path / "m.npz", {"w": one}, metadata={"w": "text"})
        assert os.listdir(tmp_path) == []

    @each_format
    def test_options(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"m{suffix}"
        for metadata in ({"a": 1}, {1: "a"}, {"a": "\ud800"}):
            with pytest.raises(InvalidOptions) as caught:
                save_checkpoint(path, some(), metadata=metadata)
            assert caught.value.option == "metadata"
        path.write_bytes(b"old")
        with pytest.raises(InvalidOptions, match="exists") as caught:
            save_checkpoint(path, some())
        assert caught.value.option == "output"
        assert path.read_bytes() == b"old"

    @pytest.mark.parametrize("name", ["model", "model.bin", "model.npz.txt", ".npz"])
    def test_unknown_suffix(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidOptions, match="suffix") as caught:
            save_checkpoint(tmp_path / name, some())
        assert caught.value.option == "output"

    @each_format
    def test_parameters_are_read_one_at_a_time_and_in_order(
        self, tmp_path: Path, suffix: str
    ) -> None:
        read: list[int] = []

        def parameters() -> Iterator[Parameter]:
            for number in range(3):

                def load(number: int = number) -> np.ndarray:
                    read.append(number)
                    return np.full(2, number, np.int32)

                yield Parameter(str(number), (2,), np.dtype(np.int32), load)

        save_checkpoint(tmp_path / f"m{suffix}", parameters())
        assert read == [0, 1, 2]
        assert list(loaded(tmp_path / f"m{suffix}")) == ["0", "1", "2"]

    @each_format
    @pytest.mark.parametrize("values", [np.zeros(3, np.int32), np.zeros(2, np.int64)])
    def test_values_that_are_not_what_was_declared(
        self, tmp_path: Path, suffix: str, values: np.ndarray
    ) -> None:
        liar = Parameter("w", (2,), np.dtype(np.int32), lambda: values)
        with pytest.raises(InvalidModel, match="declared"):
            save_checkpoint(tmp_path / f"m{suffix}", [liar])
        assert os.listdir(tmp_path) == []

    @pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs /dev/null")
    @each_format
    def test_into_a_pipe_or_nowhere(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"nowhere{suffix}").symlink_to("/dev/null")
        save_checkpoint(tmp_path / f"nowhere{suffix}", some())
        pipe = tmp_path / f"pipe{suffix}"
        os.mkfifo(pipe)
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
        reader.start()
        save_checkpoint(pipe, some())
        reader.join()
        (tmp_path / "received").write_bytes(received[0])
        assert_same(loaded(tmp_path / "received"), some())


class TestModel:
    def test_from_arrays(self) -> None:
        with Model.from_arrays(some()) as model:
            assert model.names() == list(model) == list(some())
            assert len(model) == 4
            assert_same(dict(model.arrays()), some())

    def test_duplicate_names(self) -> None:
        with pytest.raises(InvalidModel):
            Model([Parameter.from_array("w", np.zeros(1))] * 2)

    def test_closes_once(self) -> None:
        closed: list[bool] = []
        model = Model([], on_close=lambda: closed.append(True))
        model.close()
        model.close()
        assert closed == [True]

    def test_big_endian_becomes_native(self) -> None:
        parameter = Parameter.from_array("w", np.array([1, 2], ">i2"))
        assert parameter.dtype == np.dtype("i2")
        assert parameter.read().dtype.isnative
        assert parameter.read().tolist() == [1, 2]
