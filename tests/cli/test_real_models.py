"""Real trained networks through the commands, in every format: names, order, types, ties.

The networks are not part of the project; NNR_SHARED names the folder with data/models.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cli_support import Arrays, Run, assert_same, load, save

import nnr_codec

KERAS = ["mobilenetv1_025_vww96", "resnet8_mlperftiny_cifar10"]
TRANSFORMER = "minilm_l6_v2_encoder"


@pytest.fixture(scope="module")
def folder() -> Path:
    default = Path(__file__).parents[2] / ".." / "shared"
    found = Path(os.environ.get("NNR_SHARED") or default) / "data" / "models"
    if not found.is_dir():
        pytest.skip("NNR_SHARED names no folder with data/models")
    return found


def encoded(run: Run, model: Path, *options: object) -> Path:
    """Encode a model file uniformly; return the stream's path."""
    stream = model.with_suffix(".nnr")
    done = run("nnr-encode", model, "-o", stream, "-q", "--no-dq", *options)
    assert (done.code, done.err) == (0, "")
    return stream


def decoded(run: Run, stream: Path, suffix: str, *options: object) -> Path:
    """Decode a stream into a file of a format; return its path."""
    output = stream.with_name(f"decoded{suffix}")
    done = run("nnr-decode", stream, "-o", output, "-q", *options)
    assert (done.code, done.err) == (0, "")
    return output


def assert_close(found: Arrays, expected: Arrays) -> None:
    """Compare names, order, types and shapes; and values within the quantization's error."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        was, now = array.astype(np.float64), found[name].astype(np.float64)
        assert np.square(now - was).sum() <= 1e-3 * np.square(was).sum(), name


@pytest.mark.parametrize("name", KERAS)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_keras_models(run: Run, folder: Path, tmp_path: Path, name: str, suffix: str) -> None:
    if suffix == ".pt":
        pytest.importorskip("torch")
    arrays = load(folder / f"{name}.safetensors")
    stream = encoded(run, save(tmp_path / f"model{suffix}", arrays), "--qp", -44)
    found = load(decoded(run, stream, suffix))
    assert_close(found, arrays)
    assert_same(found, nnr_codec.load_file(stream))


def test_transformer_with_ties_from_torch(run: Run, folder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {
        name: torch.from_numpy(array)
        for name, array in load(folder / f"{TRANSFORMER}.safetensors").items()
    }
    first, second, third = list(state)[:3]
    state[second] = state[second].to(torch.bfloat16)
    state[third] = state[third].to(torch.float16)
    state = {**state, "head.weight": state[first], "step": torch.tensor(7), "tail": state[second]}
    torch.save(state, tmp_path / "model.pt")
    stream = encoded(run, tmp_path / "model.pt", "--qp", -44)
    found = torch.load(decoded(run, stream, ".pt"), weights_only=True)
    assert list(found) == list(state)
    assert [(t.dtype, t.shape) for t in found.values()] == [
        (t.dtype, t.shape) for t in state.values()
    ]
    places = {name: tensor.data_ptr() for name, tensor in found.items()}
    assert places["head.weight"] == places[first]
    assert places["tail"] == places[second]
    assert len(set(places.values())) == len(state) - 2
    assert found["step"] == 7
    assert_same(load(decoded(run, stream, ".safetensors")), nnr_codec.load_file(stream))


def test_onnx(run: Run, folder: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    arrays = load(folder / f"{KERAS[1]}.safetensors")
    arrays["shape"] = np.array([1, -1], np.int64)
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph([], "resnet", [], [], initializer=tensors)
    model = tmp_path / "model.onnx"
    onnx.save_model(onnx.helper.make_model(graph, producer_name="test"), model)
    output = decoded(run, encoded(run, model, "--qp", -44), ".onnx", "--graph", model)
    assert_close(load(output), arrays)
    assert onnx.load_model(output).producer_name == "test"


def test_sharded_checkpoint(run: Run, folder: Path, tmp_path: Path) -> None:
    arrays = load(folder / f"{TRANSFORMER}.safetensors")
    shards: list[Arrays] = [{}, {}, {}]
    places = {}
    for number, (name, array) in enumerate(reversed(arrays.items())):
        shards[number % 3][name] = array
        places[name] = f"part-{number % 3}.safetensors"
    for number, shard in enumerate(shards):
        save(tmp_path / f"part-{number}.safetensors", shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = load(decoded(run, encoded(run, index, "--qp", -44), ".safetensors"))
    assert_close(found, {name: arrays[name] for name in places})
