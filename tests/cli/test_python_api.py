"""The Python interface: encode, decode, open, save_file, load_file, and what they raise."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import (
    Arrays,
    assert_same,
    decomposed_stream,
    load,
    random_weights,
    small_model,
    with_damaged_payload,
)

import nnr_codec
from nnr_codec import DecodeLimits, EncodeOptions
from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.model import Model
from nnr_codec.report import TensorReport


def encoded(model: Any, **options: Any) -> bytes:
    """Return a model's stream."""
    data = nnr_codec.encode(model, options=EncodeOptions(**options)).data
    assert data is not None
    return data


@pytest.fixture(scope="module")
def data() -> bytes:
    return encoded(small_model())


@pytest.fixture(scope="module")
def decoded(data: bytes) -> Arrays:
    return nnr_codec.decode(data)


class TestEncode:
    def test_what_can_be_encoded(self, model: Path, data: bytes) -> None:
        assert encoded(str(model)) == encoded(model) == data
        assert encoded(Model.from_arrays(small_model())) == data
        with open_checkpoint(model) as opened:
            assert encoded(opened) == data
            assert opened["first.bias"].read().size == 40  # the caller's model stays open

    def test_bytes_or_a_file(self, data: bytes, tmp_path: Path) -> None:
        result = nnr_codec.encode(small_model(), tmp_path / "m.nnr")
        assert result.data is None
        assert (tmp_path / "m.nnr").read_bytes() == data
        with pytest.raises(nnr_codec.InvalidOptions, match="exists already"):
            nnr_codec.encode(small_model(), tmp_path / "m.nnr", EncodeOptions(qp=-20))
        assert (tmp_path / "m.nnr").read_bytes() == data
        nnr_codec.encode(small_model(), tmp_path / "m.nnr", EncodeOptions(qp=-20), overwrite=True)
        assert (tmp_path / "m.nnr").read_bytes() == encoded(small_model(), qp=-20)

    def test_report(self, data: bytes, decoded: Arrays) -> None:
        report = nnr_codec.encode(small_model()).report
        assert report.bytes == len(data)
        assert [tensor.name for tensor in report.tensors] == list(small_model())
        first = report.tensors[0]
        error = decoded["first.weight"].astype(float) - small_model()["first.weight"]
        assert first.squared_error == pytest.approx(np.square(error).sum())
        assert first.energy == pytest.approx(np.square(small_model()["first.weight"]).sum())
        assert (first.shape, first.dtype, first.qp) == ((40, 24), "float32", -38)

    def test_executor_and_progress(self, data: bytes) -> None:
        told: list[TensorReport] = []
        with ThreadPoolExecutor(3) as executor:
            result = nnr_codec.encode(small_model(), executor=executor, progress=told.append)
            assert result.data == data
            assert nnr_codec.encode(small_model(), executor=executor).data == data
        assert tuple(told) == result.report.tensors

    def test_options_are_frozen_and_checked(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            EncodeOptions().qp = 3  # type: ignore[misc]
        with pytest.raises(nnr_codec.InvalidOptions) as caught:
            EncodeOptions(unary_length=0)
        assert caught.value.option == "unary_length"

    @pytest.mark.parametrize("value", [[1.0], "text", np.array(["text"]), np.array([1j])])
    def test_what_is_no_tensor(self, value: Any) -> None:
        with pytest.raises(nnr_codec.InvalidModel) as caught:
            nnr_codec.encode({"good": np.ones(2), "bad": value})
        assert caught.value.parameter == "bad"

    @pytest.mark.parametrize("name", ["nul\0", "\ud800", "n" * 5000])
    def test_names_that_the_format_cannot_hold(self, name: str) -> None:
        with pytest.raises(nnr_codec.InvalidModel):
            nnr_codec.encode({name: np.ones(2, np.float32)})

    def test_empty_model(self) -> None:
        assert nnr_codec.decode(encoded({})) == {}


class TestElementTypes:
    """Element types and shapes come back as they were."""

    @pytest.mark.parametrize(
        "given", ["bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
    )
    @pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 2, 2)])
    def test_integers_are_exact(self, given: str, shape: tuple[int, ...]) -> None:
        low, high = (0, 1) if given == "bool" else (np.iinfo(given).min, np.iinfo(given).max)
        low, high = max(low, -(2**31)), min(high, 2**31 - 1)
        rng = np.random.default_rng(1)
        values = np.asarray(rng.integers(low, high, shape, endpoint=True)).astype(given)
        values.reshape(-1)[-1:] = high
        values.reshape(-1)[: values.size - 1][:1] = low
        found = nnr_codec.decode(encoded({"w": values}))["w"]
        assert found.dtype == given
        assert found.shape == shape
        np.testing.assert_array_equal(found, values)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    @pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 2, 2)])
    def test_floats(self, dtype: str, shape: tuple[int, ...]) -> None:
        values = np.asarray(np.random.default_rng(2).normal(size=shape)).astype(dtype)
        found = nnr_codec.decode(encoded({"w": values}))["w"]
        assert found.dtype == dtype
        assert found.shape == shape
        np.testing.assert_allclose(found, values, atol=0.003)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_lossless_floats(self, dtype: str) -> None:
        values = np.array([[0.5, -0.25], [1e-3, 3.0]]).astype(np.float16).astype(dtype)
        found = nnr_codec.decode(encoded({"w": values}, exclude=("*",)))["w"]
        np.testing.assert_array_equal(found, values)
        assert found.dtype == dtype


class TestDecode:
    def test_every_kind_of_source(self, data: bytes, decoded: Arrays, tmp_path: Path) -> None:
        path = tmp_path / "m.nnr"
        path.write_bytes(data)
        with path.open("rb") as file:
            for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), file,
                           path, str(path)):  # fmt: skip
                assert_same(nnr_codec.decode(source), decoded)

    def test_values_are_the_callers_own(self, data: bytes, decoded: Arrays) -> None:
        changed = nnr_codec.decode(encoded(small_model(), exclude=("first.weight",)))
        for values in changed.values():
            values += 1
        assert_same(nnr_codec.decode(data), decoded)

    @pytest.mark.parametrize("scan_order", [0, 1])
    @pytest.mark.parametrize("workers", [ThreadPoolExecutor, ProcessPoolExecutor])
    def test_executor(self, scan_order: int, workers: Callable[[int], Executor]) -> None:
        data = encoded(small_model(), scan_order=scan_order)
        with workers(2) as executor:
            assert (
                nnr_codec.encode(
                    small_model(), options=EncodeOptions(scan_order=scan_order), executor=executor
                ).data
                == data
            )
            assert_same(nnr_codec.decode(data, executor=executor), nnr_codec.decode(data))

    def test_only(self, data: bytes, decoded: Arrays) -> None:
        assert list(nnr_codec.decode(data, only="*.bias")) == ["first.bias", "second.bias"]
        assert nnr_codec.decode(data, only="nothing") == {}
        with pytest.raises(nnr_codec.BitstreamError):  # what is passed over is counted
            nnr_codec.decode(data, only="nothing", limits=DecodeLimits(max_elements=1655))

    def test_layers(self) -> None:
        data, g, h = decomposed_stream()
        assert_same(nnr_codec.decode(data), {"layer": g @ h})
        assert_same(nnr_codec.decode(data, layers="factorized"), {"layer_G": g, "layer_H": h})
        with pytest.raises(nnr_codec.InvalidOptions):
            nnr_codec.decode(data, layers="both")  # type: ignore[arg-type]

    def test_series(self) -> None:
        models = [{"w": random_weights(32, 32, seed=seed)} for seed in range(3)]
        streams: list[bytes] = []
        for model in models:
            result = nnr_codec.encode(model, parents=streams)
            assert result.data is not None
            found = nnr_codec.decode(result.data, parents=streams)
            assert_same(found, nnr_codec.decode(encoded(model)))  # parents serve contexts alone
            streams.append(result.data)


class TestOpen:
    def test_mapping(self, data: bytes, decoded: Arrays, tmp_path: Path) -> None:
        nnr_codec.save_file(small_model(), tmp_path / "m.nnr")
        for source in (data, tmp_path / "m.nnr", str(tmp_path / "m.nnr")):
            with nnr_codec.open(source) as stream:
                assert list(stream.keys()) == list(decoded)
                assert len(stream) == 4
                assert "first.bias" in stream
                assert "third.bias" not in stream
                assert_same(dict(stream), decoded)
                np.testing.assert_array_equal(stream.get("first.bias"), decoded["first.bias"])
                assert stream.get("third.bias") is None
                with pytest.raises(KeyError):
                    stream["third.bias"]
                assert stream.info().tensors[0].shape == (40, 24)
                assert stream.info().bytes == len(data)

    def test_is_lazy(self, data: bytes, decoded: Arrays) -> None:
        with nnr_codec.open(with_damaged_payload(data)) as stream:
            assert list(stream) == list(decoded)
            np.testing.assert_array_equal(stream["first.weight"], decoded["first.weight"])
            with pytest.raises(nnr_codec.InvalidBitstream):
                stream["second.bias"]

    def test_closed(self, tmp_path: Path) -> None:
        nnr_codec.save_file(small_model(), tmp_path / "m.nnr")
        with nnr_codec.open(tmp_path / "m.nnr") as stream:
            pass
        assert "first.bias" not in stream
        for read in (lambda: stream["first.bias"], stream.info, stream.units):
            with pytest.raises(ValueError, match="closed"):
                read()

    def test_blocks_of_rows_with_a_busy_pool(self) -> None:
        """Tensors taken from inside the pool that is to decode their block rows: no deadlock."""
        rng = np.random.default_rng(3)
        model = {f"w{i}": rng.normal(0, 1, (200, 50)).astype(np.float32) for i in range(4)}
        data = nnr_codec.encode(model, options=nnr_codec.EncodeOptions(scan_order=1)).data
        with ThreadPoolExecutor(2) as pool, nnr_codec.open(data, executor=pool) as stream:
            found = list(pool.map(stream.__getitem__, stream))
        expected = nnr_codec.decode(data)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected.values(), strict=True))

    def test_a_pipe(self, tmp_path: Path) -> None:
        data = nnr_codec.encode(small_model()).data
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        with nnr_codec.open(f"/dev/fd/{reader}") as stream:
            assert list(stream) == list(small_model())
        os.close(reader)

    def test_only_selects_inside_blocks(self) -> None:
        data, *_ = decomposed_stream()
        (dense,) = nnr_codec.decode(data)
        assert list(nnr_codec.decode(data, only=dense)) == [dense]
        factors = list(nnr_codec.decode(data, only=dense, layers="factorized"))
        assert factors == [f"{dense}_G", f"{dense}_H"]
        assert list(nnr_codec.decode(data, only=f"{dense}_G", layers="factorized")) == factors[:1]

    def test_survivors_of_equal_cost_are_given_up(self) -> None:
        """Zeros keep the survivors of the trellis apart; a full window decides for the best."""
        values = np.zeros((120, 100), np.float32)
        values[60, 50] = 0.7
        for order in (0, 1):
            options = nnr_codec.EncodeOptions(scan_order=order)
            decoded = nnr_codec.decode(nnr_codec.encode({"w": values}, options=options).data)["w"]
            assert np.flatnonzero(decoded).tolist() == [6050]
            assert abs(decoded[60, 50] - 0.7) < 0.002

    def test_layers_and_parents(self) -> None:
        data, g, h = decomposed_stream()
        with nnr_codec.open(data) as stream:
            assert_same(dict(stream), {"layer": g @ h})
        with nnr_codec.open(data, layers="factorized") as stream:
            assert_same(dict(stream), {"layer_G": g, "layer_H": h})
        base = encoded({"w": random_weights(32, 32)})
        update = nnr_codec.encode({"w": random_weights(32, 32)}, parents=[base]).data or b""
        with nnr_codec.open(update, parents=[base]) as stream:
            assert_same(dict(stream), nnr_codec.decode(base))

    def test_damaged_headers(self, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "bad.nnr").write_bytes(data[:-1])
        with pytest.raises(nnr_codec.TruncatedBitstream, match=r"bad\.nnr: unit 4"):
            nnr_codec.open(tmp_path / "bad.nnr")


class TestFiles:
    def test_save_and_load(self, decoded: Arrays, tmp_path: Path) -> None:
        path = tmp_path / "m.nnr"
        for _ in range(2):  # the second time it replaces the file, as safetensors does
            nnr_codec.save_file(small_model(), path)
            assert_same(nnr_codec.load_file(path), decoded)
        nnr_codec.save_file(small_model(), str(path), EncodeOptions(exclude=("*",)))
        assert_same(nnr_codec.load_file(str(path)), small_model())

    def test_checkpoint_to_checkpoint(self, model: Path, tmp_path: Path) -> None:
        nnr_codec.encode(model, tmp_path / "m.nnr", EncodeOptions(exclude=("*",)))
        assert_same(nnr_codec.load_file(tmp_path / "m.nnr"), load(model))


class TestErrors:
    def test_hierarchy(self) -> None:
        for error in (nnr_codec.InvalidBitstream, nnr_codec.UnsupportedFeature,
                      nnr_codec.LimitExceeded, nnr_codec.MissingParent):  # fmt: skip
            assert issubclass(error, nnr_codec.BitstreamError)
        assert issubclass(nnr_codec.TruncatedBitstream, nnr_codec.InvalidBitstream)
        for error in (nnr_codec.BitstreamError, nnr_codec.InvalidModel, nnr_codec.InvalidOptions):
            assert issubclass(error, nnr_codec.NnrError)

    def test_bitstream_errors_name_file_and_unit(self, data: bytes, tmp_path: Path) -> None:
        path = tmp_path / "bad.nnr"
        path.write_bytes(with_damaged_payload(data))
        with pytest.raises(nnr_codec.InvalidBitstream) as caught:
            nnr_codec.load_file(path)
        assert caught.value.source == str(path)
        assert caught.value.unit == "unit 4 (NNR_NDU)"
        assert 0 < caught.value.byte_offset < len(data)
        assert str(caught.value).startswith(f"{path}: unit 4 (NNR_NDU), byte ")
        assert "tensor '" in str(caught.value)

    def test_limits(self, data: bytes) -> None:
        with pytest.raises(nnr_codec.LimitExceeded) as caught:
            nnr_codec.decode(data, limits=DecodeLimits(max_dimensions=1))
        assert (caught.value.limit, caught.value.value) == ("max_dimensions", 2)
