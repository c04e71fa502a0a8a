"""ONNX: tensors of graphs, read and replaced."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_support import assert_refused, assert_same, hide_package, loaded, some

from nnr_codec.checkpoints import check_output, open_checkpoint, save_checkpoint
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.model import dtype_of

onnx = pytest.importorskip("onnx")

DTYPES = [
    *["bool", "float16", "float32", "float64", "bfloat16", "float8_e8m0fnu"],
    *[f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)],
    *["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"],
]


def graph_of(tensors: list[Any]) -> Any:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"], name="the node")
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [out], initializer=tensors)
    return onnx.helper.make_model(graph, producer_name="test")


def write_onnx(folder: Path, tensors: dict[str, np.ndarray] | list[Any]) -> Path:
    if isinstance(tensors, dict):
        tensors = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    path = folder / "model.onnx"
    onnx.save_model(graph_of(tensors), path)
    return path


class TestReading:
    def test_initializers_in_order(self, tmp_path: Path) -> None:
        path = write_onnx(tmp_path, some())
        assert list(loaded(path)) == list(some())
        assert_same(loaded(path), some())

    def test_format_is_told_by_content(self, tmp_path: Path) -> None:
        path = write_onnx(tmp_path, some()).rename(tmp_path / "model.pt")
        assert_same(loaded(path), some())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_element_types(self, tmp_path: Path, dtype: str) -> None:
        kind = dtype_of(dtype)
        values = np.arange(4).astype("u1").astype(kind).reshape(2, 2)
        tensors = {"w": values, "scalar": np.array(values[1, 0], kind), "none": values[:0]}
        path = write_onnx(tmp_path, tensors)
        assert_same(loaded(path), tensors)
        save_checkpoint(tmp_path / "new.onnx", {**tensors, "w": values[::-1]}, graph=path)
        assert_same(loaded(tmp_path / "new.onnx"), {**tensors, "w": values[::-1]})

    def test_values_in_typed_fields(self, tmp_path: Path) -> None:
        types = onnx.TensorProto
        tensors = [
            onnx.helper.make_tensor("f", types.FLOAT, [2], [1.5, 2]),
            onnx.helper.make_tensor("h", types.FLOAT16, [2], [1.5, 2]),
            onnx.helper.make_tensor("i", types.INT64, [], [-3]),
        ]
        path = write_onnx(tmp_path, tensors)
        found = loaded(path)
        assert found["f"].tolist() == [1.5, 2]
        assert found["h"].tolist() == [1.5, 2]
        assert found["i"] == -3
        changed = {name: array + 1 for name, array in found.items()}
        save_checkpoint(tmp_path / "new.onnx", changed, graph=path)
        assert_same(loaded(tmp_path / "new.onnx"), changed)

    def test_closed_model_cannot_be_read(self, tmp_path: Path) -> None:
        with open_checkpoint(write_onnx(tmp_path, some())) as model:
            pass
        with pytest.raises(InvalidModel, match="closed"):
            model["scalar"].read()

    @pytest.mark.parametrize("kind", ["STRING", "COMPLEX64", "INT4", "FLOAT4E2M1"])
    def test_element_types_that_stay_in_the_graph(self, tmp_path: Path, kind: str) -> None:
        odd = onnx.TensorProto(name="odd", data_type=onnx.TensorProto.DataType.Value(kind))
        weight = onnx.numpy_helper.from_array(np.ones(3, np.float32), "w")
        path = write_onnx(tmp_path, [odd, weight])
        with open_checkpoint(path) as model:
            assert model.names() == ["w"]
            assert len(model.notes) == 1
            assert "'odd'" in model.notes[0]
            assert kind in model.notes[0]
        save_checkpoint(tmp_path / "new.onnx", {"w": np.zeros(3, np.float32)}, graph=path)
        replaced = onnx.load_model(tmp_path / "new.onnx").graph.initializer
        assert replaced[0] == odd
        assert onnx.numpy_helper.to_array(replaced[1]).tolist() == [0, 0, 0]

    def test_sparse_values_in_subgraphs_and_functions_are_named(self, tmp_path: Path) -> None:
        helper, array = onnx.helper, onnx.numpy_helper.from_array
        values, indices = np.ones(2, np.float32), np.array([0, 3])
        few = helper.make_sparse_tensor(array(values, "few"), array(indices, "at"), [4])
        model = graph_of([array(np.ones(3, np.float32), "w")])
        body = helper.make_graph([], "body", [], [], sparse_initializer=[few])
        model.graph.node.append(helper.make_node("Loop", [], [], body=body))
        constant = helper.make_node("Constant", [], ["rest"], sparse_value=few)
        model.functions.append(helper.make_function("d", "f", [], ["rest"], [constant], []))
        onnx.save_model(model, tmp_path / "m.onnx")
        with open_checkpoint(tmp_path / "m.onnx") as opened:
            assert list(opened) == ["w"]
            assert [note.split()[0] for note in opened.notes] == ["'few'", "'rest'"]

    def test_sparse(self, tmp_path: Path) -> None:
        model = graph_of([onnx.numpy_helper.from_array(np.ones(3, np.float32), "w")])
        model.graph.sparse_initializer.add().values.name = "few"
        onnx.save_model(model, tmp_path / "m.onnx")
        with open_checkpoint(tmp_path / "m.onnx") as opened:
            assert opened.names() == ["w"]
            assert ["'few' stays" in note and "sparse" in note for note in opened.notes] == [True]

    def test_a_file_without_weights(self, tmp_path: Path) -> None:
        assert_refused(write_onnx(tmp_path, []), "no weights")

    def test_two_of_a_name(self, tmp_path: Path) -> None:
        tensor = onnx.numpy_helper.from_array(np.ones(1), "w")
        assert_refused(write_onnx(tmp_path, [tensor, tensor]), "'w'.*two initializers")

    @pytest.mark.parametrize("content", [b"", b"\0" * 50, b"nonsense", b"\x08\x08", b"\x12\0"])
    def test_damaged(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        assert_refused(tmp_path / "m.onnx", "damaged")

    def test_damaged_values(self, tmp_path: Path) -> None:
        for dims, raw in [([3], bytes(8)), ([-2], bytes(8)), ([2**40, 2**40], bytes(8))]:
            tensor = onnx.TensorProto(name="w", data_type=1, dims=dims, raw_data=raw)
            assert_refused(write_onnx(tmp_path, [tensor]), "'w'")

    def test_truncations(self, tmp_path: Path) -> None:
        path = write_onnx(tmp_path, {"w": np.ones(8, np.float32)})
        whole = path.read_bytes()
        refused = 0
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            try:
                loaded(path)  # a message that ends between two fields is one
            except InvalidModel:
                refused += 1
        assert refused > len(whole) * 0.9

    def test_without_onnx(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_onnx(tmp_path, some())
        hide_package(monkeypatch, "onnx")
        with pytest.raises(InvalidModel, match=r"pip install nnr-codec\[onnx\]"):
            open_checkpoint(path)
        with pytest.raises(InvalidModel, match=r"pip install nnr-codec\[onnx\]"):
            save_checkpoint(tmp_path / "new.onnx", some(), graph=path)


class TestExternalData:
    def external(self, folder: Path, location: str) -> Path:
        tensor = onnx.TensorProto(name="w", data_type=1, dims=[2])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in [("location", location), ("offset", "4"), ("length", "8")]:
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        model = graph_of([tensor])
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    def test_is_read_from_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "data.bin").write_bytes(np.array([9, 1, 2], "<f4").tobytes())
        path = self.external(tmp_path, "data.bin")
        assert loaded(path)["w"].tolist() == [1, 2]
        (tmp_path / "other").mkdir()
        new = tmp_path / "other/new.onnx"
        save_checkpoint(new, {"w": np.array([3, 4], np.float32)}, graph=path)
        assert loaded(new)["w"].tolist() == [3, 4]
        assert os.listdir(tmp_path / "other") == ["new.onnx"]

    def test_missing(self, tmp_path: Path) -> None:
        assert_refused(self.external(tmp_path, "data.bin"), "'w'")

    def test_too_short(self, tmp_path: Path) -> None:
        (tmp_path / "data.bin").write_bytes(bytes(8))
        assert_refused(self.external(tmp_path, "data.bin"), "'w'")

    @pytest.mark.parametrize("where", ["../data.bin", "sub/../../data.bin", "{0}", "..\\data.bin"])
    def test_outside_of_the_folder(self, tmp_path: Path, where: str) -> None:
        (tmp_path / "data.bin").write_bytes(bytes(12))
        (tmp_path / "model/sub").mkdir(parents=True)
        path = self.external(tmp_path / "model", where.format(tmp_path / "data.bin"))
        assert_refused(path, "'w'.*not in the folder")

    def test_links_to_the_outside(self, tmp_path: Path) -> None:
        (tmp_path / "data.bin").write_bytes(bytes(12))
        (tmp_path / "model").mkdir()
        (tmp_path / "model/data.bin").symlink_to(tmp_path / "data.bin")
        assert_refused(self.external(tmp_path / "model", "data.bin"), "'w'")


class TestWriting:
    def test_only_values_change(self, tmp_path: Path) -> None:
        path = write_onnx(tmp_path, some())
        tensors = {name: (array + 1).astype(array.dtype) for name, array in some().items()}
        new = tmp_path / "new.onnx"
        backwards = dict(reversed(tensors.items()))
        save_checkpoint(new, backwards, graph=path, metadata={"a": "b"})
        assert list(loaded(new)) == list(tensors)
        assert_same(loaded(new), tensors)
        with open_checkpoint(new) as model:
            assert model.metadata == {"a": "b"}
        before, after = onnx.load_model(path), onnx.load_model(new)
        assert len(after.graph.initializer) == len(tensors)
        for model in (before, after):
            del model.graph.initializer[:]
            del model.metadata_props[:]
        assert before == after

    def test_replaces_the_original(self, tmp_path: Path) -> None:
        path = write_onnx(tmp_path, some())
        with open_checkpoint(path) as model:
            save_checkpoint(path, model, graph=path, overwrite=True)
        assert_same(loaded(path), some())

    @pytest.mark.parametrize(
        ("changes", "name", "reason"),
        [
            ({"more": np.ones(1)}, "more", "no tensor of the graph"),
            ({"scalar": np.ones(1, np.int64)}, "scalar", r"int64 of shape \(\), not"),
            ({"scalar": np.array(1, np.int32)}, "scalar", "not int32"),
            ({"scalar": None}, "scalar", "not among those"),
        ],
    )
    def test_tensors_have_to_agree(
        self, tmp_path: Path, changes: dict[str, Any], name: str, reason: str
    ) -> None:
        path = write_onnx(tmp_path, some())
        tensors = {n: array for n, array in {**some(), **changes}.items() if array is not None}
        with pytest.raises(InvalidModel, match=reason) as caught:
            save_checkpoint(tmp_path / "new.onnx", tensors, graph=path)
        assert caught.value.parameter == name
        assert "model.onnx" in str(caught.value)
        assert os.listdir(tmp_path) == ["model.onnx"]

    def test_the_graph_belongs_to_onnx(self, tmp_path: Path) -> None:
        path = write_onnx(tmp_path, some())
        for output, graph in [("new.onnx", None), ("new.npz", path), ("new.pt", path)]:
            for call in (
                lambda o=output, g=graph: check_output(tmp_path / o, overwrite=True, graph=g),
                lambda o=output, g=graph: save_checkpoint(tmp_path / o, some(), graph=g),
            ):
                with pytest.raises(InvalidOptions) as caught:
                    call()
                assert caught.value.option == "graph"
        check_output(tmp_path / "new.onnx", overwrite=False, graph=path)
        assert os.listdir(tmp_path) == ["model.onnx"]

    def test_graphs_that_are_none(self, tmp_path: Path) -> None:
        (tmp_path / "nothing").write_bytes(b"nothing")
        for graph in ("nothing", "missing"):
            with pytest.raises(InvalidModel, match=graph):
                save_checkpoint(tmp_path / "new.onnx", some(), graph=tmp_path / graph)
        assert os.listdir(tmp_path) == ["nothing"]


def constant(name: str, values: np.ndarray) -> Any:
    value = onnx.numpy_helper.from_array(values)
    return onnx.helper.make_node("Constant", [], [name], value=value)


def branch(name: str, tensors: dict[str, np.ndarray], nodes: list[Any]) -> Any:
    made = [onnx.numpy_helper.from_array(array, key) for key, array in tensors.items()]
    output = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    return onnx.helper.make_graph(nodes, name, [], [output], initializer=made)


class TestBelowTheGraph:
    """Weights of Constant nodes, of branches, and of functions."""

    def graph(self, folder: Path) -> Path:
        model = graph_of([onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "top")])
        inner = branch("inner", {"w": np.full((3, 1), 5, np.float32)}, [])
        nested = onnx.helper.make_node("If", ["c"], ["out"], then_branch=inner, else_branch=inner)
        first = branch("first", {"w": np.full((1, 2), 3, np.float32)}, [nested])
        second = branch("second", {}, [constant("k", np.full((2, 3), 7, np.int8))])
        model.graph.node.append(
            onnx.helper.make_node("If", ["c"], ["z"], then_branch=first, else_branch=second)
        )
        model.graph.node.extend(
            [
                constant("k", np.arange(4, dtype=np.float16)),
                constant("axes", np.array([0, 1])),
                constant("scalar", np.array(2.0, np.float32)),
                onnx.helper.make_node("Constant", [], ["text"], value_string="x"),
            ]
        )
        opsets = [onnx.helper.make_opsetid("", 21)]
        function = onnx.helper.make_function(
            "own", "f", [], ["k"], [constant("k", np.ones(5, np.float32))], opsets
        )
        model.functions.append(function)
        onnx.save_model(model, folder / "model.onnx")
        return folder / "model.onnx"

    def test_they_are_read(self, tmp_path: Path) -> None:
        assert_same(
            loaded(self.graph(tmp_path)),
            {
                "top": np.ones((2, 2), np.float32),
                "w": np.full((1, 2), 3, np.float32),
                "w.2": np.full((3, 1), 5, np.float32),
                "w.3": np.full((3, 1), 5, np.float32),
                "k": np.full((2, 3), 7, np.int8),
                "k.2": np.arange(4, dtype=np.float16),
                "k.3": np.ones(5, np.float32),
            },
        )

    def test_they_are_put_back(self, tmp_path: Path) -> None:
        path = self.graph(tmp_path)
        changed = {name: array + 1 for name, array in loaded(path).items()}
        save_checkpoint(tmp_path / "new.onnx", changed, graph=path)
        assert_same(loaded(tmp_path / "new.onnx"), changed)
        old, new = (onnx.load_model(tmp_path / name) for name in ("model.onnx", "new.onnx"))
        for model in (old, new):
            for node in model.graph.node:
                if node.op_type == "If" or node.output[0] == "k":
                    node.ClearField("attribute")
            model.graph.ClearField("initializer")
            model.ClearField("functions")
        assert old == new

    def test_names_that_differ_already(self, tmp_path: Path) -> None:
        model = graph_of(
            [
                onnx.numpy_helper.from_array(np.full(1, i, np.float32), n)
                for i, n in enumerate(("k.2", "k"))
            ]
        )
        model.graph.node.append(constant("k", np.full(1, 9, np.float32)))
        onnx.save_model(model, tmp_path / "model.onnx")
        found = loaded(tmp_path / "model.onnx")
        assert {name: array[0] for name, array in found.items()} == {"k.2": 0, "k": 1, "k.3": 9}

    def test_places_outside_of_the_folder(self, tmp_path: Path) -> None:
        model = graph_of([onnx.numpy_helper.from_array(np.ones(1), "w")])
        node = constant("k", np.ones(3, np.float32))
        tensor = node.attribute[0].t
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../elsewhere")
        model.graph.node.append(node)
        onnx.save_model(model, tmp_path / "m.onnx")
        assert_refused(tmp_path / "m.onnx", "'k'.*folder of the file")
