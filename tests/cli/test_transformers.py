"""Folders of transformers: encoded, decoded, and loaded again, as the model that they were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cli_support import Run

import nnr_codec

torch = pytest.importorskip("torch")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
transformers = pytest.importorskip("transformers")

IDS = [[1, 2, 3, 4, 5, 6]]


def bert() -> Any:
    """A small BERT, whose decoder is tied to its embeddings."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 50}
    config = transformers.BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)
    return transformers.BertForMaskedLM(config)


def gpt2() -> Any:
    """A small GPT-2, whose head is tied to its embeddings."""
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=40)
    return transformers.GPT2LMHeadModel(config)


def outputs(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits


def save(model: Any, folder: Path, kind: str) -> None:
    if kind == "sharded":
        model.save_pretrained(folder, max_shard_size="4KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        return
    model.save_pretrained(folder)
    if kind == "bin":  # which transformers still reads, but does not write any more
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("kind", ["plain", "sharded", "bin"])
@pytest.mark.parametrize("make", [bert, gpt2])
def test_folder_comes_back(run: Run, tmp_path: Path, make: Any, kind: str) -> None:
    torch.manual_seed(0)
    model = make()
    source = tmp_path / "source"
    save(model, source, kind)
    for options, tolerance in (("--lossless",), 0.0), ((), 0.02):
        stream, restored = tmp_path / f"stream{tolerance}", tmp_path / f"restored{tolerance}"
        encoded = run("nnr-encode", source, "-o", f"{stream}/", "-q", *options)
        assert (encoded.code, encoded.err) == (0, "")
        assert run("nnr-decode", stream, "-o", f"{restored}/", "-q").code == 0
        expected = outputs(model)
        error = outputs(type(model).from_pretrained(restored)) - expected
        assert float((error**2).sum()) <= tolerance * float((expected**2).sum())


@pytest.mark.parametrize("make", [bert, gpt2])
def test_from_pretrained_of_our_own(tmp_path: Path, make: Any) -> None:
    from nnr_codec.hub import from_pretrained, save_pretrained

    torch.manual_seed(0)
    model = make()
    save_pretrained(model, tmp_path, nnr_codec.EncodeOptions(lossless=True))
    found = from_pretrained(tmp_path, type(model))
    assert torch.equal(outputs(found), outputs(model))
    embedding, head = found.get_input_embeddings(), found.get_output_embeddings()
    assert embedding.weight is head.weight  # tied
