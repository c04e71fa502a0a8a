"""Model files: round trips, and agreement with the other readers and writers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_support import assert_same, each_format, loaded, some
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnr_codec.checkpoints import open_checkpoint, save_checkpoint

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
