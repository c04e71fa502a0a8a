"""Folders as transformers saves models in, and shards of torch's files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_support import assert_refused, assert_same, loaded

from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.checkpoints.folder import files_beside, weights_in

one = {"w": np.ones(1, np.float32)}
two = {"w": np.full(1, 2, np.float32)}


class TestFolders:
    def test_the_usual_name_comes_first(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "other.safetensors", two)
        save_checkpoint(tmp_path / "model.safetensors", one)
        assert_same(loaded(tmp_path), one)

    def test_the_only_one(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "other.safetensors", two)
        (tmp_path / "config.json").write_text("{}")
        assert_same(loaded(tmp_path), two)

    def test_an_index_beside_its_shards(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "a.safetensors", one)
        index = {"weight_map": {"w": "a.safetensors"}}
        (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
        assert weights_in(str(tmp_path)).endswith(".index.json")
        assert_same(loaded(tmp_path), one)

    def test_several(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            save_checkpoint(tmp_path / f"{name}.safetensors", one)
        assert_refused(tmp_path, r"several may be: a\.safetensors, b\.safetensors")

    def test_files_beside(self, tmp_path: Path) -> None:
        for name in ("config.json", "model.safetensors", "pytorch_model.bin", "model.nnr"):
            (tmp_path / name).touch()
        for name in ("1_Pooling/config.json", ".cache/x.json", "onnx/model.onnx"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).touch()
        (tmp_path / "model.safetensors.index.json").touch()
        assert files_beside(str(tmp_path)) == ["config.json", "1_Pooling/config.json"]


class TestShardsOfTorch:
    def test_they_are_read(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        for name, tensors in (("1.bin", {"a": torch.ones(2)}), ("2.bin", {"b": torch.zeros(1)})):
            torch.save(tensors | {"epoch": 3}, tmp_path / name)
        index = {"metadata": {}, "weight_map": {"b": "2.bin", "a": "1.bin"}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        expected = {"b": np.zeros(1, np.float32), "a": np.ones(2, np.float32)}
        assert_same(loaded(tmp_path), expected)
        with open_checkpoint(tmp_path / "pytorch_model.bin.index.json") as model:
            assert [note.split(":")[0] for note in model.notes] == ["2.bin", "1.bin"]

    def test_other_formats_are_none(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "a.npz", one)
        (tmp_path / "i.json").write_text(json.dumps({"weight_map": {"w": "a.npz"}}))
        with pytest.raises(Exception, match="is a shard, but no file of safetensors or torch"):
            loaded(tmp_path / "i.json")
