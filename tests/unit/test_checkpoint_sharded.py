"""Sharded safetensors: an index over several files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_support import assert_same, loaded, some

from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.errors import InvalidModel

INDEX = "model.safetensors.index.json"


def write_sharded(folder: Path, places: Any = None, **more: Any) -> Path:
    """Write the tensors of `some()` to two shards, one in a folder below, and an index of them."""
    tensors = some()
    (folder / "sub").mkdir(exist_ok=True)
    kept = {name: tensors[name] for name in ("scalar", "z.weight")}
    save_checkpoint(folder / "1.safetensors", kept, overwrite=True, metadata={"format": "pt"})
    kept = {name: tensors[name] for name in ("a.bias", "empty")}
    metadata = {"format": "np", "more": "text"}
    save_checkpoint(folder / "sub/2.safetensors", kept, overwrite=True, metadata=metadata)
    path = folder / INDEX
    places = placed() if places is None else places
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places, **more}))
    return path


def placed(**changes: Any) -> dict[str, Any]:
    one, two = "1.safetensors", "sub/2.safetensors"
    return {"z.weight": one, "a.bias": two, "scalar": one, "empty": two, **changes}


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(InvalidModel, match=reason):
        loaded(path)


def test_order_is_that_of_the_index(tmp_path: Path) -> None:
    found = loaded(write_sharded(tmp_path))
    assert list(found) == list(placed())
    assert_same(found, some())
    backwards = dict(reversed(placed().items()))
    assert list(loaded(write_sharded(tmp_path, backwards))) == list(backwards)


@pytest.mark.parametrize("prefix", ["", " \n", "\ufeff"])
def test_is_told_by_content(tmp_path: Path, prefix: str) -> None:
    path = write_sharded(tmp_path)
    other = tmp_path / "model.npz"
    other.write_text(prefix + path.read_text(), encoding="utf-8")
    assert_same(loaded(other), some())


def test_is_lazy_and_closes_every_shard(tmp_path: Path) -> None:
    path = write_sharded(tmp_path, placed(big="1.safetensors"))
    shard = tmp_path / "1.safetensors"
    tensors = {**loaded(shard), "big": np.ones(100_000, np.float32)}
    save_checkpoint(shard, tensors, overwrite=True, metadata={"format": "pt"})
    with open_checkpoint(path) as model:
        assert model.metadata == {"format": "pt", "more": "text"}
        assert model.source == str(tmp_path / INDEX)
        with open(shard, "r+b") as data:
            data.truncate(20_000)  # values, unlike the header, come from the file as it is now
        with pytest.raises(InvalidModel, match=r"'big'.*1\.safetensors.*ends before"):
            model["big"].read()
    for name in ("scalar", "empty", "a.bias"):
        with pytest.raises(InvalidModel):
            model[name].read()


def test_shards_may_be_links(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    path = write_sharded(tmp_path / "snapshot")
    shard = tmp_path / "snapshot/1.safetensors"
    shard.rename(tmp_path / "blobs/1234")
    shard.symlink_to("../blobs/1234")
    assert_same(loaded(path), some())


def test_no_tensors(tmp_path: Path) -> None:
    assert loaded(write_sharded(tmp_path, {})) == {}


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        (placed(scalar="3.safetensors"), r"3\.safetensors.*No such file"),
        (placed(scalar="sub"), "is a directory"),
        (placed(scalar="sub/2.safetensors"), r"'scalar'.*not in the shard 'sub/2\.safetensors'"),
        (placed(more="1.safetensors"), "'more'.*not in the shard"),
        ({"z.weight": "1.safetensors"}, "'scalar'.*but the index does not"),
        (placed(scalar=3), "'scalar'.*not text"),
        (placed(scalar=None), "'scalar'.*not text"),
        (placed(scalar=INDEX), "damaged"),
        (placed(scalar="nul\0"), "cannot be read"),
        ([], "lacks an object 'weight_map'"),
        *(
            (placed(scalar=shard), "not in the folder")
            for shard in [
                "",
                "..",
                "../1.safetensors",
                "sub/../1.safetensors",
                "sub\\..\\1.safetensors",
                "/1.safetensors",
                "\\1.safetensors",
                "C:\\1.safetensors",
                "C:1.safetensors",
            ]
        ),
    ],
)
def test_refusals(tmp_path: Path, places: Any, reason: str) -> None:
    assert_refused(write_sharded(tmp_path, places), reason)


def test_absolute_path_to_an_existing_shard(tmp_path: Path) -> None:
    absolute = placed(scalar=str(tmp_path / "1.safetensors"))
    assert_refused(write_sharded(tmp_path, absolute), "not in the folder")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "damaged"),
        (b"{}", "lacks an object 'weight_map'"),
        (b'{"weight_map": 3}', "lacks an object 'weight_map'"),
        (b'{"weight_map": {"a": "1", "a": "2"}}', "damaged.*twice"),
        (b'{"weight_map": {"\xff": "1"}}', "damaged"),
        (b'{"weight_map":' + b"[" * 100_000, "damaged"),
    ],
)
def test_damaged_index(tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / INDEX).write_bytes(text)
    assert_refused(tmp_path / INDEX, reason)


def test_a_tensor_in_two_shards_is_taken_from_the_stated_one(tmp_path: Path) -> None:
    path = write_sharded(tmp_path)
    shard = tmp_path / "sub/2.safetensors"
    tensors = {**loaded(shard), "scalar": np.array(8, np.int64)}
    save_checkpoint(shard, tensors, overwrite=True)
    assert loaded(path)["scalar"] == 7
