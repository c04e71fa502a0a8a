"""Memory of encoding and decoding: the conformance tool, and what waits for its turn."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cli_support import Run, factored_stream, load, random_weights, save

import nnr_codec
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.decoding.unit_decoder import DecodedTensor, decode_data_unit
from nnr_codec.model import Model, Parameter
from nnr_codec.quantize import distortion
from nnr_codec.support.ordered_calls import OrderedCalls

TOOL = Path(__file__).parents[2] / "conformance" / "memory.py"
MEGABYTE = 1_000_000
TENSOR = 4 * MEGABYTE
COUNT = 8


@pytest.fixture
def tool() -> ModuleType:
    """The tool, imported from its file, so that the checkout is not on the path."""
    spec = importlib.util.spec_from_file_location("memory_tool", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestTool:
    ARGUMENTS = ("memory", "--size", "4e6", "--largest", "1e6", "--json")

    def test_within_the_bound(
        self, tool: ModuleType, capfd: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(sys, "argv", [*self.ARGUMENTS, "--folder", str(tmp_path)])
        assert tool.main() == 0
        figures = json.loads(capfd.readouterr().out)
        assert figures["largest_tensor_bytes"] == MEGABYTE
        assert figures["bound_bytes"] == 203 * MEGABYTE
        assert 4 * MEGABYTE < figures["model_bytes"] < 4.1 * MEGABYTE
        assert [run["run"] for run in figures["runs"]] == ["encode", "decode"]
        assert all(run["peak_bytes"] > 20 * MEGABYTE for run in figures["runs"])  # of numpy alone
        assert list(tmp_path.iterdir()) == []

    def test_above_the_bound(self, tool: ModuleType, capsys, monkeypatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "argv", [*self.ARGUMENTS[:-1], "--folder", str(tmp_path)])
        monkeypatch.setattr(tool, "BESIDES", 0)
        assert tool.main() == 1
        assert capsys.readouterr().out.count("NO") == 2


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A checkpoint of tensors that are large beside everything else."""
    arrays = {f"w{n}": random_weights(1000, TENSOR // 4000, seed=n) for n in range(COUNT)}
    return save(tmp_path / "large.safetensors", arrays)


class TestTensorByTensor:
    """The core's arrays are not traced: these tests see what Python keeps of the tensors."""

    def test_encoding(self, run: Run, large: Path, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(distortion, "_PIECE", 1000)
        arguments = ("nnr-encode", large, "-o", tmp_path / "m.nnr", "-f", "--threads", 1)
        assert run(*arguments).code == 0  # the imports
        tracemalloc.start()
        try:
            assert run(*arguments).code == 0
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert TENSOR < peak < 2 * TENSOR

    @pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
    @pytest.mark.parametrize("input_", ["file", "pipe"])
    def test_decoded_tensors_are_let_go(
        self, run: Run, stream: Path, tmp_path: Path, suffix: str, input_: str, monkeypatch
    ) -> None:
        kept: list[weakref.ref[np.ndarray]] = []
        alive: list[int] = []

        def decode(*arguments: Any, **options: Any) -> list[DecodedTensor]:
            alive.append(sum(reference() is not None for reference in kept))
            tensors = decode_data_unit(*arguments, **options)
            kept.extend(weakref.ref(tensor.values) for tensor in tensors)
            assert [tensor.integers for tensor in tensors] == [None] * len(tensors)
            return tensors

        monkeypatch.setattr("nnr_codec.decoding.stream_decoder.decode_data_unit", decode)
        source = stream if input_ == "file" else tmp_path / "pipe"
        if input_ == "pipe":
            os.mkfifo(source)
            threading.Thread(target=lambda: source.write_bytes(stream.read_bytes())).start()
        output = tmp_path / f"out{suffix}"
        assert run("nnr-decode", source, "-o", output, "--threads", 1).code == 0
        assert len(load(output)) == 4
        assert alive == [0, 0, 0, 0]

    @pytest.mark.parametrize(
        ("layers", "kept"), [("dense", [0, 0, 1, 1, 0]), ("factorized", [0, 0, 0, 0, 0])]
    )
    def test_factors_are_kept_for_the_last_weight_of_them(
        self, run: Run, tmp_path: Path, layers: str, kept: list[int], monkeypatch
    ) -> None:
        """Before each unit: a block, b's own factor, b's and c's, c's own, a vector."""
        references: list[weakref.ref[np.ndarray]] = []
        alive: list[int] = []

        def decode(*arguments: Any, **options: Any) -> list[DecodedTensor]:
            alive.append(sum(reference() is not None for reference in references))
            tensors = decode_data_unit(*arguments, **options)
            references.extend(weakref.ref(tensor.values) for tensor in tensors)
            return tensors

        monkeypatch.setattr("nnr_codec.decoding.stream_decoder.decode_data_unit", decode)
        (tmp_path / "f.nnr").write_bytes(factored_stream())
        output = tmp_path / "out.safetensors"
        options = ["--layers", layers, "--threads", 1]
        assert run("nnr-decode", tmp_path / "f.nnr", "-o", output, *options).code == 0
        assert alive == kept

    def test_tied_tensors_are_kept_for_the_last_of_them(self) -> None:
        weights = Parameter.from_array("a", random_weights(8, 8))
        ties = [replace(weights, name=name, tied_to="a") for name in ("b", "d")]
        others = [Parameter.from_array(name, random_weights(4)) for name in ("c", "e")]
        model = Model([weights, ties[0], others[0], ties[1], others[1]])
        data = nnr_codec.encode(model).data or b""
        tensors = StreamDecoder().tensors(io.BytesIO(data))
        reference = weakref.ref(next(tensors).values)
        for name, kept in (("b", True), ("c", True), ("d", True), ("e", False)):
            tensor = next(tensors)
            assert tensor.name == name
            assert (tensor.values is reference()) == (tensor.tied_to == "a")
            del tensor
            assert (reference() is not None) == kept, name

    def test_tensors_are_not_kept_for_ties_that_are_not_selected(self) -> None:
        weights = Parameter.from_array("a", random_weights(8, 8))
        other = Parameter.from_array("c", random_weights(4))
        model = Model([weights, other, replace(weights, name="z", tied_to="a")])
        data = nnr_codec.encode(model).data or b""
        tensors = StreamDecoder(only="[ac]").tensors(data)
        reference = weakref.ref(next(tensors).values)
        assert next(tensors).name == "c"
        assert reference() is None


def reciprocal(value: int) -> float:
    return 1 / value


class TestOrderedCalls:
    @pytest.mark.parametrize(
        ("sizes", "most"),
        [([1] * 9, 4), ([60] * 9, 1), ([50] * 9, 2), ([1000] * 3, 1), ([10, 1000, 10, 10], 2)],
    )
    def test_bounds(self, sizes: list[int], most: int) -> None:
        under_way: list[int] = []

        def results() -> Iterator[int]:
            with (
                ThreadPoolExecutor(8) as executor,
                OrderedCalls(executor, int, 4, 100) as calls,
            ):
                for number, size in enumerate(sizes):
                    for result in calls.room_for(size):
                        under_way.remove(result)
                        yield result
                    under_way.append(number)
                    waiting.append(len(under_way))
                    calls.submit(size, number)
                yield from calls.rest()

        waiting: list[int] = []
        assert list(results()) == list(range(len(sizes)))
        assert max(waiting) == most

    def test_a_pool_that_drops_calls_leaves_none_waiting(self) -> None:
        begun, may_end = threading.Event(), threading.Event()

        def call(number: int) -> int:
            begun.set()
            may_end.wait(10)
            return number

        executor = ThreadPoolExecutor(1)
        with OrderedCalls(executor, call, 4) as calls:
            for number in range(3):
                calls.submit(number, number)
            begun.wait(10)
            executor.shutdown(wait=False, cancel_futures=True)
            may_end.set()
            results = calls.rest()
            assert next(results) == 0
            with pytest.raises(CancelledError):
                next(results)

    def test_errors_come_in_their_turn(self) -> None:
        with ThreadPoolExecutor(2) as executor, OrderedCalls(executor, reciprocal, 4) as calls:
            calls.submit(1, 1)
            calls.submit(1, 0)
            results = calls.rest()
            assert next(results) == 1.0
            with pytest.raises(ZeroDivisionError):
                next(results)

    def test_what_has_not_begun_is_cancelled(self) -> None:
        begun = threading.Event()
        done: list[int] = []
        with ThreadPoolExecutor(1) as executor:
            with OrderedCalls(executor, lambda call: call(), 4) as calls:
                calls.submit(1, begun.wait)
                calls.submit(1, lambda: done.append(1))
            begun.set()
        assert done == []
