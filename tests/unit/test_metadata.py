"""The text entries of a model's file, which travel in the model map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.decoding.decoded_model import DecodedModel
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.factorization.map_checks import MapError
from nnr_codec.factorization.metadata import MAX_METADATA_BYTES
from nnr_codec.factorization.model_map import ModelMap, parse_model_map
from nnr_codec.model import Model
from nnr_codec.support.rereadable_file import rereadable

TENSORS = {"w": np.ones((3, 3), np.float32)}


def model(metadata: dict[str, str]) -> Model:
    return Model(Model.from_arrays(TENSORS).values(), metadata=metadata)


@pytest.mark.parametrize(
    "metadata",
    [{"author": "somebody", "format": "tf"}, {"": ""}, {"ключ": "значение\0\n"}, {"format": "x"}],
)
def test_they_come_back(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, TENSORS, metadata=metadata)
    stream = tmp_path / "m.nnr"
    nnr_codec.encode(path, stream)
    with nnr_codec.open(stream) as opened:
        assert opened.metadata == metadata
    with rereadable(str(stream)) as source:
        assert DecodedModel(StreamDecoder(), source).metadata == metadata


def test_the_usual_entry_takes_no_bytes() -> None:
    plain = nnr_codec.encode(TENSORS).data
    assert nnr_codec.encode(model({"format": "pt"})).data == plain
    assert nnr_codec.encode(model({"format": "tf"})).data != plain


def test_too_many_are_left_out_with_a_note() -> None:
    allowed = {"k": "x" * (MAX_METADATA_BYTES - 1)}
    result = nnr_codec.encode(model(allowed))
    assert nnr_codec.open(result.data).metadata == allowed
    assert result.report.notes == ()
    with pytest.warns(nnr_codec.NnrWarning, match="metadata are left out"):
        result = nnr_codec.encode(model({"k": "x" * MAX_METADATA_BYTES}))
    assert nnr_codec.open(result.data).metadata == {}
    assert "metadata are left out" in result.report.notes[0]


def test_the_map_of_factors_is_no_entry() -> None:
    text = ModelMap().to_text()
    assert nnr_codec.open(nnr_codec.encode(model({"nnr_model_map": text})).data).metadata == {}


@pytest.mark.parametrize(
    "value",
    [
        *([], "x", {"a": 1}, {"a": None}, {"nnr_model_map": "x"}, {"a": "\ud800"}),
        {"a": "x" * MAX_METADATA_BYTES},
    ],
)
def test_damaged_entries(value: Any) -> None:
    text = json.dumps({"nnr_model_map": 1, "metadata": value})
    with pytest.raises(MapError):
        parse_model_map(text, 8)


def test_files_of_other_formats(tmp_path: Path) -> None:
    for name in ("m.npz", "m.safetensors"):
        save_checkpoint(tmp_path / name, TENSORS, metadata={"k": "v"})
        with open_checkpoint(tmp_path / name) as opened:
            data = nnr_codec.encode(opened).data
        assert nnr_codec.open(data).metadata == {"k": "v"}
