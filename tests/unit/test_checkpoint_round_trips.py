"""Model files: round trips, and agreement with the other readers and writers."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoint_support import EXTENSION_DTYPES, assert_same, each_format, loaded, some
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.errors import InvalidModel

DTYPES = ["bool", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]

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


def every_pattern(dtype: str) -> np.ndarray:
    """Return an array of all values of the element type `dtype`, NaNs included."""
    extension = np.dtype(getattr(ml_dtypes, dtype))
    bits = 8 * extension.itemsize
    return np.arange(2**bits, dtype=f"uint{bits}").view(extension).reshape(16, -1)


@pytest.mark.parametrize("dtype", EXTENSION_DTYPES)
class TestExtensionTypes:
    def test_safetensors(self, tmp_path: Path, dtype: str) -> None:
        values = every_pattern(dtype)
        scalar = np.array(values[3, 5], values.dtype)
        tensors = {"all": values, "scalar": scalar, "none": values[:0]}
        path = tmp_path / "model.safetensors"
        save_checkpoint(path, tensors)
        assert_same(loaded(path), tensors)
        with open_checkpoint(path) as model:
            assert [parameter.dtype.name for parameter in model.values()] == [dtype] * 3

    def test_big_endian_becomes_native(self, tmp_path: Path, dtype: str) -> None:
        values = every_pattern(dtype)
        swapped = values.astype(values.dtype.newbyteorder(">"))
        path = tmp_path / "model.safetensors"
        save_checkpoint(path, {"w": swapped})
        found = loaded(path)["w"]
        assert found.dtype == values.dtype
        assert np.array_equal(found.astype("f4"), values.astype("f4"), equal_nan=True)

    def test_npz_refuses_them(self, tmp_path: Path, dtype: str) -> None:
        with pytest.raises(InvalidModel, match=f"{dtype}.*npz") as caught:
            save_checkpoint(tmp_path / "m.npz", {"w": every_pattern(dtype)})
        assert caught.value.parameter == "w"
        assert os.listdir(tmp_path) == []


def test_safetensors_of_torch_in_bfloat16(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    tensor = torch.tensor([[1.5, -2.0, float("inf")]], dtype=torch.bfloat16)
    safetensors_torch.save_file({"w": tensor}, path)
    assert loaded(path)["w"].astype("f4").tolist() == [[1.5, -2.0, float("inf")]]
    save_checkpoint(path, loaded(path), overwrite=True)
    assert torch.equal(safetensors_torch.load_file(path)["w"], tensor)
