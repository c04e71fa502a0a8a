"""Folders and repositories with a bitstream: saved, and made modules of again."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")

from hub_support import hub_server  # noqa: E402
from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec.errors import InvalidModel, InvalidOptions  # noqa: E402
from nnr_codec.hub import from_pretrained, save_pretrained  # noqa: E402
from nnr_codec.layers import FactorizedLayer  # noqa: E402
from nnr_codec.options import DecompositionOptions  # noqa: E402

EXACT = nnr_codec.EncodeOptions(lossless=True)


class Net(nn.Module):
    """A module that is made of the entries of `config.json`."""

    def __init__(self, width: int, depth: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.config: Any = {"width": width, "depth": depth}
        self.scale = scale
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    state, reference = found.state_dict(), expected.state_dict()
    assert list(state) == list(reference)
    assert all(torch.equal(state[name], reference[name]) for name in state)


class TestFolders:
    def test_a_module_comes_back(self, tmp_path: Path) -> None:
        net = Net(8, 2)
        result = save_pretrained(net, tmp_path / "made", EXACT)
        assert result.data is None
        assert result.report.elements == sum(p.numel() for p in net.parameters())
        assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["config.json", "model.nnr"]
        found = from_pretrained(tmp_path / "made", Net)
        assert isinstance(found, Net)
        assert not found.training
        assert_same_weights(found, net)

    def test_arguments_win_over_the_configuration(self, tmp_path: Path) -> None:
        save_pretrained(Net(8), tmp_path, EXACT)
        (tmp_path / "config.json").write_text(json.dumps({"width": 3, "scale": 3}))
        found = from_pretrained(str(tmp_path), Net, width=8)
        assert (found.config["width"], found.scale) == (8, 3)

    def test_without_a_configuration(self, tmp_path: Path) -> None:
        linear = nn.Linear(4, 3)
        save_pretrained(linear, tmp_path, EXACT)
        assert [p.name for p in tmp_path.iterdir()] == ["model.nnr"]
        found = from_pretrained(tmp_path, nn.Linear, in_features=4, out_features=3)
        assert_same_weights(found, linear)

    def test_configurations_of_other_kinds(self, tmp_path: Path) -> None:
        @dataclass
        class Config:
            width: int = 8

        net = Net(8)
        net.config = Config()
        save_pretrained(net, tmp_path, EXACT)
        assert json.loads((tmp_path / "config.json").read_text()) == {"width": 8}
        for bad in (object(), {"width": np.ones(1)}):
            net.config = bad
            with pytest.raises(InvalidModel, match="config"):
                save_pretrained(net, tmp_path / "new", EXACT)
            assert not (tmp_path / "new").exists()

    def test_factors(self, tmp_path: Path) -> None:
        options = nnr_codec.EncodeOptions(decomposition=DecompositionOptions("lr", rank=2))
        save_pretrained(Net(8, 2), tmp_path, options)
        found = from_pretrained(tmp_path, Net)
        assert isinstance(found.layers[1], FactorizedLayer)
        assert not isinstance(
            from_pretrained(tmp_path, Net, layers="dense").layers[1], FactorizedLayer
        )

    def test_what_lies_in_a_folder_is_kept(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        (source / "tokenizer").mkdir(parents=True)
        net = Net(8)
        nnr_codec.checkpoints.save_checkpoint(
            source / "model.safetensors", {n: p.numpy() for n, p in net.state_dict().items()}
        )
        (source / "config.json").write_text(json.dumps(net.config))
        (source / "tokenizer" / "words.txt").write_text("a\n")
        save_pretrained(source, tmp_path / "made", EXACT)
        names = {str(p.relative_to(tmp_path / "made")) for p in (tmp_path / "made").rglob("*")}
        assert names == {"model.nnr", "config.json", "tokenizer", "tokenizer/words.txt"}
        assert_same_weights(from_pretrained(tmp_path / "made", Net), net)
        with pytest.raises(InvalidOptions, match="is the input"):
            save_pretrained(source, source)

    def test_a_new_folder_goes_if_encoding_fails(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidModel):
            save_pretrained({"w": np.array([1j])}, tmp_path / "made")
        assert list(tmp_path.iterdir()) == []


class TestClassesOfLibraries:
    def test_a_class_of_its_own_for_the_configuration(self, tmp_path: Path) -> None:
        """As transformers has it."""

        class Config:
            def __init__(self, width: int) -> None:
                self.width = width

            @classmethod
            def from_pretrained(cls, folder: str) -> Config:
                return cls(int((Path(folder) / "own.txt").read_text()))

            def save_pretrained(self, folder: str) -> None:
                (Path(folder) / "own.txt").write_text(str(self.width))

        class Model(nn.Module):
            config_class = Config

            def __init__(self, config: Config, bias: bool = True) -> None:
                super().__init__()
                self.config = config
                self.layer = nn.Linear(config.width, 2, bias)

        model = Model(Config(5), bias=False)
        save_pretrained(model, tmp_path, EXACT)
        found = from_pretrained(tmp_path, Model, bias=False)
        assert found.config.width == 5
        assert_same_weights(found, model)

    def test_a_class_that_makes_modules_of_configurations(self, tmp_path: Path) -> None:
        """As diffusers has it."""

        class Model(Net):
            @classmethod
            def load_config(cls, folder: str) -> dict[str, Any]:
                return json.loads((Path(folder) / "config.json").read_text()) | {"_class": "Model"}

            @classmethod
            def from_config(cls, config: dict[str, Any], **arguments: Any) -> Model:
                return cls(config["width"], **arguments)

        model = Model(4, 2)
        save_pretrained(model, tmp_path, EXACT)
        assert_same_weights(from_pretrained(tmp_path, Model, depth=2), model)


class TestRefusals:
    def test_folders(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidModel, match=r"has no file model\.nnr"):
            from_pretrained(tmp_path, Net)
        (tmp_path / "file.nnr").write_bytes(b"")
        for path in (tmp_path / "file.nnr", tmp_path / "missing", "one", "a/b/c"):
            with pytest.raises(InvalidOptions, match="neither a folder nor a repository"):
                from_pretrained(path, Net)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "is not JSON"),
            ("[1]", "is no object"),
            ('{"width": 8, "heads": 2}', "is not what Net takes: .*heads"),
            ("{}", "is not what Net takes: .*width"),
        ],
    )
    def test_configurations(self, tmp_path: Path, text: str, message: str) -> None:
        save_pretrained(Net(8), tmp_path, EXACT)
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InvalidModel, match=rf"config\.json': {message}"):
            from_pretrained(tmp_path, Net)

    def test_modules_that_disagree(self, tmp_path: Path) -> None:
        save_pretrained(Net(8, 2), tmp_path, EXACT)
        with pytest.raises(InvalidModel, match=r"'layers\.1\.weight': is in"):
            from_pretrained(tmp_path, Net, depth=1)
        with pytest.warns(nnr_codec.NnrWarning):
            from_pretrained(tmp_path, Net, depth=1, strict=False)
        limits = nnr_codec.DecodeLimits(max_elements=3)
        with pytest.raises(nnr_codec.LimitExceeded):
            from_pretrained(tmp_path, Net, limits=limits)


class TestRepositories:
    def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(InvalidOptions, match="pip install huggingface_hub"):
            from_pretrained("org/name", Net)

    @pytest.mark.parametrize(
        ("text", "revision"), [("org/name", None), ("org/name@refs/pr/1", "refs/pr/1")]
    )
    def test_what_is_asked_of_the_library(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, revision: str | None
    ) -> None:
        net, asked = Net(8), {}

        def snapshot_download(repo_id: str, **arguments: Any) -> str:
            asked.update(arguments, repo_id=repo_id)
            return str(tmp_path)

        save_pretrained(net, tmp_path, EXACT)
        library: Any = ModuleType("huggingface_hub")
        library.snapshot_download = snapshot_download
        monkeypatch.setitem(sys.modules, "huggingface_hub", library)
        assert_same_weights(from_pretrained(text, Net), net)
        ignored = asked.pop("ignore_patterns")
        assert asked == {"repo_id": "org/name", "revision": revision}
        assert {"*.safetensors", "*.bin", "*.index.json"} <= set(ignored)
        assert "*.nnr" not in ignored

    def test_a_download(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        library = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        net, served = Net(8), tmp_path / "served"
        save_pretrained(net, served, EXACT)
        (served / "model.safetensors").write_bytes(bytes(1000))
        (served / "words.txt").write_text("a\n")
        with hub_server(served) as server:
            download = partial(
                library.snapshot_download, endpoint=server.endpoint, cache_dir=tmp_path / "cache"
            )
            monkeypatch.setattr(library, "snapshot_download", download)
            found = from_pretrained("org/name@main", Net)
            assert server.downloaded() == {"model.nnr", "config.json", "words.txt"}
        assert_same_weights(found, net)
