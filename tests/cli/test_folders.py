"""Folders of models, standard input, keys, and outputs that are inputs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli_support import LONG, Run, load, save, script, small_model

import nnr_codec
from nnr_codec.checkpoints import open_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as transformers saves it."""
    path = tmp_path / "bert"
    (path / "1_Pooling").mkdir(parents=True)
    save(path / "model.safetensors", small_model())
    (path / "config.json").write_text('{"model_type": "bert"}')
    (path / "vocab.txt").write_text("[UNK]\n")
    (path / "1_Pooling" / "config.json").write_text("{}")
    (path / "pytorch_model.bin").write_bytes(b"the same weights once more")
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


BESIDE = ["1_Pooling/config.json", "config.json", "vocab.txt"]


class TestFolders:
    def test_to_a_file(self, run: Run, folder: Path, tmp_path: Path) -> None:
        assert run("nnr-encode", folder, "-o", tmp_path / "m.nnr").code == 0
        assert list(nnr_codec.load_file(tmp_path / "m.nnr")) == list(small_model())

    def test_there_and_back(self, run: Run, folder: Path, tmp_path: Path) -> None:
        coded, back = tmp_path / "coded", tmp_path / "back"
        assert run("nnr-encode", folder, "-o", f"{coded}/", "--lossless").code == 0
        assert files(coded) == sorted([*BESIDE, "model.nnr"])
        shown = run("nnr-info", coded, "--json")
        assert json.loads(shown.out)["tensors"] == len(small_model())
        assert run("nnr-decode", coded, "-o", f"{back}/").code == 0
        assert files(back) == sorted([*BESIDE, "model.safetensors"])
        assert (back / "vocab.txt").read_text() == "[UNK]\n"
        for name, values in load(back / "model.safetensors").items():
            np.testing.assert_array_equal(values, small_model()[name])
        with open_checkpoint(back / "model.safetensors") as model:
            assert model.metadata == {"format": "pt"}
        assert run("nnr-decode", coded, "-o", tmp_path / "one.npz").code == 0

    def test_other_weights_are_named(self, run: Run, folder: Path, tmp_path: Path) -> None:
        """They are in none of the folders that are made."""
        save(folder / "1_Pooling" / "model.safetensors", small_model())
        done = run("nnr-encode", folder, "-o", f"{tmp_path}/coded/")
        assert done.code == 0
        note = "neither coded nor copied: 'pytorch_model.bin', '1_Pooling/model.safetensors'\n"
        assert note in done.err
        assert "neither coded" not in run("nnr-encode", folder, "-o", tmp_path / "m.nnr").err

    def test_an_output_inside_is_not_copied_into_itself(self, run: Run, folder: Path) -> None:
        for _ in range(2):
            assert run("nnr-encode", folder, "-o", f"{folder}/coded/", "-f").code == 0
        assert files(folder / "coded") == sorted([*BESIDE, "model.nnr"])

    def test_existing_files_are_kept(self, run: Run, folder: Path, tmp_path: Path) -> None:
        coded = tmp_path / "coded"
        coded.mkdir()
        (coded / "config.json").write_text("mine")
        refused = run("nnr-encode", folder, "-o", coded)
        assert refused.code == 2
        assert "config.json' exists already; -f overwrites it" in refused.err
        assert files(coded) == ["config.json"]
        assert run("nnr-encode", folder, "-o", coded, "-f").code == 0
        assert (coded / "config.json").read_text() == '{"model_type": "bert"}'

    def test_nothing_half_written_stays(self, run: Run, folder: Path, tmp_path: Path) -> None:
        assert run("nnr-encode", folder, "-o", f"{tmp_path}/coded/").code == 0
        stream = tmp_path / "coded" / "model.nnr"
        stream.write_bytes(stream.read_bytes()[:-20])
        assert run("nnr-decode", tmp_path / "coded", "-o", f"{tmp_path}/back/").code == 3
        assert not (tmp_path / "back").exists()

    def test_a_dry_run_makes_none(self, run: Run, folder: Path, tmp_path: Path) -> None:
        assert run("nnr-encode", folder, "-o", f"{tmp_path}/coded/", "--dry-run").code == 0
        assert not (tmp_path / "coded").exists()

    @pytest.mark.parametrize("command", ["nnr-encode", "nnr-decode"])
    def test_of_a_file_none_is_made(
        self, run: Run, model: Path, stream: Path, tmp_path: Path, command: str
    ) -> None:
        source = model if command == "nnr-encode" else stream
        refused = run(command, source, "-o", tmp_path)
        assert refused.code == 2
        assert "is a directory" in refused.err

    def test_the_same_folder(self, run: Run, folder: Path) -> None:
        assert run("nnr-encode", folder, "-o", folder).code == 2
        assert "model.nnr" not in files(folder)

    def test_a_folder_without_a_stream(self, run: Run, tmp_path: Path) -> None:
        for command in (["nnr-info"], ["nnr-decode", "-o", tmp_path / "m.npz"]):
            refused = run(command[0], tmp_path, *command[1:])
            assert refused.code == 1
            assert "without a file model.nnr" in refused.err


class TestStandardInput:
    def test_a_model(self, model: Path, tmp_path: Path) -> None:
        command = [script("nnr-encode"), "-", "-o", str(tmp_path / "m.nnr")]
        with model.open("rb") as file:
            done = subprocess.run(
                command, stdin=file, capture_output=True, timeout=LONG, check=False
            )
        assert done.returncode == 0
        assert list(nnr_codec.load_file(tmp_path / "m.nnr")) == list(small_model())

    def test_what_is_no_model(self, tmp_path: Path) -> None:
        command = [script("nnr-encode"), "-", "-o", str(tmp_path / "m.nnr")]
        done = subprocess.run(command, input=b"x", capture_output=True, timeout=LONG, check=False)
        assert done.returncode == 1
        assert b"standard input" in done.stderr
        assert not (tmp_path / "m.nnr").exists()


class TestOutputs:
    @pytest.mark.parametrize("name", ["m.safetensors", "m.npz", "m.PT", "m.onnx", "m.json"])
    def test_endings_of_other_files(self, run: Run, model: Path, tmp_path: Path, name: str) -> None:
        refused = run("nnr-encode", model, "-o", tmp_path / name)
        assert refused.code == 2
        assert "does not end as a bitstream does: .nnr" in refused.err

    def test_an_input_is_never_written(self, run: Run, model: Path, tmp_path: Path) -> None:
        parent = tmp_path / "p.nnr"
        assert run("nnr-encode", model, "-o", parent).code == 0
        before = parent.read_bytes()
        refused = run("nnr-encode", model, "-o", parent, "-f", "--parent", parent)
        assert refused.code == 2
        assert "is an input" in refused.err
        assert parent.read_bytes() == before
        update = tmp_path / "u.nnr"
        assert run("nnr-encode", model, "-o", update, "--parent", parent).code == 0
        linked = tmp_path / "linked.npz"
        linked.hardlink_to(parent)
        assert run("nnr-decode", update, "-o", linked, "-f", "--parent", parent).code == 2
        assert parent.read_bytes() == before

    def test_a_shard_is_never_written(self, run: Run, tmp_path: Path) -> None:
        shard = save(tmp_path / "part.nnr.safetensors", small_model())
        index = tmp_path / "index.json"
        index.write_text(json.dumps({"weight_map": dict.fromkeys(small_model(), shard.name)}))
        output = tmp_path / "out.nnr"
        output.hardlink_to(shard)
        refused = run("nnr-encode", index, "-o", output, "-f")
        assert refused.code == 2
        assert "is an input" in refused.err
        assert list(load(shard)) == list(small_model())


def test_only_what_matches_nothing(run: Run, stream: Path, tmp_path: Path) -> None:
    refused = run("nnr-decode", stream, "-o", tmp_path / "m.npz", "--only", "nothing*")
    assert refused.code == 2
    assert "'nothing*' matches no tensor" in refused.err
    assert not (tmp_path / "m.npz").exists()


def test_keys(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weights = {"w": torch.ones(3, 3)}
    torch.save({"encoder": weights, "decoder": {"v": torch.ones(2)}, "n": 3}, tmp_path / "c.pt")
    refused = run("nnr-encode", tmp_path / "c.pt", "-o", tmp_path / "c.nnr")
    assert refused.code == 1
    assert "'encoder', 'decoder': choose one with --key" in refused.err
    done = run("nnr-encode", tmp_path / "c.pt", "-o", tmp_path / "c.nnr", "--key", "encoder")
    assert done.code == 0
    assert "'decoder', 'n', which are left out" in done.err
    assert list(nnr_codec.load_file(tmp_path / "c.nnr")) == ["w"]
    refused = run("nnr-encode", tmp_path / "c.pt", "--dry-run", "--key", "n")
    assert refused.code == 2
    assert "--key: 'n' in" in refused.err


def test_ties_and_empties_are_listed(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(4, 2)
    state = {"none": torch.zeros(0, 3), "first": tensor, "second": tensor}
    torch.save(state, tmp_path / "c.pt")
    shown = run("nnr-encode", tmp_path / "c.pt", "-o", tmp_path / "c.nnr", "-v")
    info = run("nnr-info", tmp_path / "c.nnr")
    for text in (shown.out, info.out):
        rows = {line.split()[0]: line for line in text.splitlines() if line}
        assert "empty" in rows["none"]
        assert "0x3" in rows["none"]
        assert "tied to first" in rows["second"]
        assert "4x2" in rows["second"]
