"""Model files: writing and what it refuses; models in memory."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoint_support import assert_same, each_format, loaded, some

from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.model import Model, Parameter


class TestWriting:
    @each_format
    @pytest.mark.parametrize(
        ("tensors", "name"),
        [
            ({"w": np.zeros(1, complex)}, "w"),
            ({"w": np.array([{}])}, "w"),
            ({"w": np.zeros(1, np.longdouble)}, "w"),
            ({"w": np.zeros(1, [("a", "f4")])}, "w"),
            ({"w": [1.0]}, "w"),
            ({"\ud800": np.zeros(1)}, "\ud800"),
            ({3: np.zeros(1)}, "3"),
            ([Parameter.from_array("w", np.zeros(1))] * 2, "w"),
        ],
    )
    def test_refused_tensors(self, tmp_path: Path, suffix: str, tensors, name: str) -> None:
        with pytest.raises(InvalidModel) as caught:
            save_checkpoint(tmp_path / f"m{suffix}", tensors)
        assert caught.value.parameter == name
        assert os.listdir(tmp_path) == []

    def test_names_that_a_format_cannot_hold(self, tmp_path: Path) -> None:
        one = np.ones(1, np.float32)
        with pytest.raises(InvalidModel, match="reserve"):
            save_checkpoint(tmp_path / "m.safetensors", {"__metadata__": one})
        for names in (["nul\0"], ["n" * 65536], ["w.npy", "w"]):
            with pytest.raises(InvalidModel):
                save_checkpoint(tmp_path / "m.npz", dict.fromkeys(names, one))
        with pytest.raises(InvalidOptions):
            save_checkpoint(tmp_path / "m.npz", {"w": one}, metadata={"w": "text"})
        assert os.listdir(tmp_path) == []

    @each_format
    def test_options(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"m{suffix}"
        for metadata in ({"a": 1}, {1: "a"}, {"a": "\ud800"}):
            with pytest.raises(InvalidOptions) as caught:
                save_checkpoint(path, some(), metadata=metadata)
            assert caught.value.option == "metadata"
        path.write_bytes(b"old")
        with pytest.raises(InvalidOptions, match="exists") as caught:
            save_checkpoint(path, some())
        assert caught.value.option == "output"
        assert path.read_bytes() == b"old"

    @pytest.mark.parametrize("name", ["model", "model.bin", "model.npz.txt", ".npz"])
    def test_unknown_suffix(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidOptions, match="suffix") as caught:
            save_checkpoint(tmp_path / name, some())
        assert caught.value.option == "output"

    @each_format
    def test_parameters_are_read_one_at_a_time_and_in_order(
        self, tmp_path: Path, suffix: str
    ) -> None:
        read: list[int] = []

        def parameters() -> Iterator[Parameter]:
            for number in range(3):

                def load(number: int = number) -> np.ndarray:
                    read.append(number)
                    return np.full(2, number, np.int32)

                yield Parameter(str(number), (2,), np.dtype(np.int32), load)

        save_checkpoint(tmp_path / f"m{suffix}", parameters())
        assert read == [0, 1, 2]
        assert list(loaded(tmp_path / f"m{suffix}")) == ["0", "1", "2"]

    @each_format
    @pytest.mark.parametrize("values", [np.zeros(3, np.int32), np.zeros(2, np.int64)])
    def test_values_that_are_not_what_was_declared(
        self, tmp_path: Path, suffix: str, values: np.ndarray
    ) -> None:
        liar = Parameter("w", (2,), np.dtype(np.int32), lambda: values)
        with pytest.raises(InvalidModel, match="declared"):
            save_checkpoint(tmp_path / f"m{suffix}", [liar])
        assert os.listdir(tmp_path) == []

    @pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs /dev/null")
    @each_format
    def test_into_a_pipe_or_nowhere(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"nowhere{suffix}").symlink_to("/dev/null")
        save_checkpoint(tmp_path / f"nowhere{suffix}", some())
        pipe = tmp_path / f"pipe{suffix}"
        os.mkfifo(pipe)
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
        reader.start()
        save_checkpoint(pipe, some())
        reader.join()
        (tmp_path / "received").write_bytes(received[0])
        assert_same(loaded(tmp_path / "received"), some())


class TestModel:
    def test_from_arrays(self) -> None:
        with Model.from_arrays(some()) as model:
            assert model.names() == list(model) == list(some())
            assert len(model) == 4
            assert_same(dict(model.arrays()), some())

    def test_duplicate_names(self) -> None:
        with pytest.raises(InvalidModel):
            Model([Parameter.from_array("w", np.zeros(1))] * 2)

    def test_ties(self) -> None:
        first = Parameter.from_array("a", np.zeros(2))
        tied = dataclasses.replace(first, name="b", tied_to="a")
        assert Model([first, tied])["b"].tied_to == "a"
        for wrong in (
            [tied, first],
            [tied],
            [dataclasses.replace(first, name="b", tied_to="b")],
            [first, dataclasses.replace(tied, shape=(3,))],
            [first, dataclasses.replace(tied, dtype=np.dtype("f4"))],
        ):
            with pytest.raises(InvalidModel, match="tied") as caught:
                Model(wrong)
            assert caught.value.parameter == "b"

    @each_format
    def test_ties_become_copies(self, tmp_path: Path, suffix: str) -> None:
        first = Parameter.from_array("a", np.ones(2))
        tied = dataclasses.replace(first, name="b", tied_to="a")
        save_checkpoint(tmp_path / f"m{suffix}", [first, tied])
        with open_checkpoint(tmp_path / f"m{suffix}") as model:
            assert [parameter.tied_to for parameter in model.values()] == [None, None]
            assert_same(dict(model.arrays()), {"a": np.ones(2), "b": np.ones(2)})

    def test_closes_once(self) -> None:
        closed: list[bool] = []
        model = Model([], on_close=lambda: closed.append(True))
        model.close()
        model.close()
        assert closed == [True]

    def test_big_endian_becomes_native(self) -> None:
        parameter = Parameter.from_array("w", np.array([1, 2], ">i2"))
        assert parameter.dtype == np.dtype("i2")
        assert parameter.read().dtype.isnative
        assert parameter.read().tolist() == [1, 2]
