"""Encoding with verification: it passes whatever is coded, and tells what does not come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions, InvalidModel, VerificationMismatch
from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.decoding import decoded_model, stream_decoder
from nnr_codec.decoding.stream_map import StreamMap
from nnr_codec.encoding import tensor_encoder, verification, weight_errors
from nnr_codec.factorization.forms import LowRank
from nnr_codec.model import DTYPE_NAMES, Model, Parameter, dtype_of, is_float
from nnr_codec.options import DecompositionOptions
from nnr_codec.quantize.distortion import Distortion
from nnr_codec.support.rereadable_file import RereadableFile

Arrays = dict[str, np.ndarray]


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def layers() -> Arrays:
    """Two convolutions and a linear layer, with what a layer's unit takes."""
    return {
        "a.weight": weights(16, 8, 3, 3),
        "a.bias": weights(16, seed=1),
        "b.weight": weights(16, 16, 3, 3, seed=2),
        "c.weight": weights(24, 16, 3, 3, seed=3),
        "d.weight": weights(40, 24, seed=4),
        "d.bias": weights(40, seed=5),
    }


def all_types() -> Arrays:
    rng = np.random.default_rng(0)
    arrays = {}
    for name in DTYPE_NAMES:
        values = rng.normal(0, 1, (12, 9)) if is_float(dtype_of(name)) else rng.integers(0, 99, 108)
        arrays[name] = np.abs(values).astype(dtype_of(name))
    return arrays


def odd_values() -> Arrays:
    return {
        "nan": np.array([[np.nan, -0.0], [np.inf, 1e-45]], np.float32),
        "zeros": np.zeros((5, 5), np.float32),
        "scalar": np.float32(0.3),
        "integer": np.array(7),
        "step": np.arange(-128, 128, dtype=np.float32).reshape(16, 16) / 64,
        "few": np.random.default_rng(1).choice([0.3, -0.7, 1.9], (40, 40)).astype(np.float32),
        "wide": np.array([2**62, -(2**62)]),
        "empty": np.empty((3, 0, 2), np.float16),
        "large": np.full((30, 30), 65504, np.float16),
    }


def tied() -> Model:
    first = Parameter.from_array("first", weights(20, 30))
    empty = Parameter.from_array("none", np.empty((0, 4), np.int8))
    return Model(
        [
            first,
            replace(first, name="second", tied_to="first"),
            Parameter.from_array("between", weights(9, seed=1)),
            replace(first, name="third", tied_to="second"),
            empty,
            replace(empty, name="nothing", tied_to="none"),
        ],
        metadata={"format": "pt", "author": "somebody", "nnr": "ä"},
    )


def decomposed(method: str, **options: Any) -> EncodeOptions:
    return EncodeOptions(decomposition=DecompositionOptions(method, **options))


def half(model: Arrays) -> Arrays:
    return {name: values.astype(np.float16) for name, values in model.items()}


CASES: dict[str, tuple[Callable[[], Any], EncodeOptions]] = {
    "default": (layers, EncodeOptions()),
    "uniform": (layers, EncodeOptions(dq=False, qp=-20)),
    "coarse": (layers, EncodeOptions(qp=-4, max_tensor_error=None)),
    "best": (layers, EncodeOptions.preset("best")),
    "profile 1": (layers, EncodeOptions(profile=1, row_skipping=True, scan_order=2)),
    "target": (layers, EncodeOptions(target_size=0.1)),
    "halves": (lambda: half(layers()), EncodeOptions(qp=-30)),
    "types": (all_types, EncodeOptions()),
    "types, lossless": (all_types, EncodeOptions(lossless=True)),
    "lossless": (layers, EncodeOptions(lossless=True)),
    "odd values": (odd_values, EncodeOptions()),
    "odd values, lossless": (odd_values, EncodeOptions(lossless=True)),
    "ties": (tied, EncodeOptions()),
    "ties, lossless": (tied, EncodeOptions(lossless=True)),
    "nothing": (dict, EncodeOptions()),
    "low rank": (layers, decomposed("lr", rank=0.4)),
    "low rank of halves": (lambda: half(layers()), decomposed("lr", rank=0.4)),
    "low rank as tensors": (layers, decomposed("lr", rank=0.4, carriage="factors")),
    "cp": (layers, decomposed("cp", rank=6)),
    "tucker2": (layers, decomposed("tucker2", rank=0.4)),
    "ht2": (layers, decomposed("ht2", rank=0.4)),
    "joint": (
        lambda: {f"w{n}": weights(16, 16, 3, 3, seed=n) for n in range(5)},
        decomposed("joint", rank=0.6),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_coded_comes_back(case: str) -> None:
    make, options = CASES[case]
    plain = nnr_codec.encode(make(), options=options)
    verified = nnr_codec.encode(make(), options=options, verify=True)
    assert verified.data == plain.data
    assert replace(verified.report, seconds=0.0) == replace(plain.report, seconds=0.0)
    if options.decomposes:
        assert any(tensor.factors for tensor in verified.report.tensors)


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_with_an_executor(kind: Any) -> None:
    for case in ("default", "types, lossless", "cp"):
        make, options = CASES[case]
        with kind(2) as executor:
            nnr_codec.encode(make(), options=options, verify=True, executor=executor)


@pytest.mark.parametrize("carriage", ["dc", "factors"])
@pytest.mark.parametrize("qp", [-90, -38, -8])
def test_factors_of_full_rank(carriage: Any, qp: int) -> None:
    """Errors down to the rounding of the product."""
    weight = weights(300, 200)
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    factored = LowRank(weight.shape, (left * values, right))
    chosen = DecompositionOptions(carriage=carriage)
    options = EncodeOptions(qp=qp, max_tensor_error=None, decomposition=chosen)
    for dtype in (np.float32, np.float16):
        model = {"w": weight.astype(dtype)}
        nnr_codec.encode(model, options=options, factorizations={"w": factored}, verify=True)


def test_updates() -> None:
    first = nnr_codec.encode(layers()).data or b""
    change = {name: values / 8 for name, values in layers().items()}
    update = nnr_codec.encode(change, parents=[first], verify=True).data or b""
    nnr_codec.encode(change, parents=[first, update], verify=True)


def test_model_of_factors(tmp_path: Path) -> None:
    stream = nnr_codec.encode(layers(), options=decomposed("lr", rank=0.4, carriage="factors")).data
    with RereadableStream(stream or b"", tmp_path) as factors:
        save_checkpoint(tmp_path / "f.npz", factors.parameters, metadata=factors.metadata)
    with open_checkpoint(tmp_path / "f.npz") as model:
        result = nnr_codec.encode(model, verify=True)
    assert any(tensor.factors for tensor in result.report.tensors)


class RereadableStream:
    """The factors of a stream, as parameters."""

    def __init__(self, data: bytes, folder: Path) -> None:
        self._path = folder / "s.nnr"
        self._path.write_bytes(data)

    def __enter__(self) -> decoded_model.DecodedModel:
        self._file = open(self._path, "rb")
        source = RereadableFile(self._file, None)
        return decoded_model.DecodedModel(stream_decoder.StreamDecoder(), source, "factorized")

    def __exit__(self, *error: object) -> None:
        self._file.close()


def test_stages_are_told() -> None:
    seen: dict[str, int] = {}

    def note(stage: str, elements: int) -> None:
        seen[stage] = seen.get(stage, 0) + elements

    model = {**layers(), "ids": np.arange(5)}
    for executor in (None, ThreadPoolExecutor(2), ProcessPoolExecutor(2)):
        seen.clear()
        nnr_codec.encode(model, verify=True, on_stage=note, executor=executor)
        count = sum(values.size for values in model.values())
        stages = ("surveyed", "chosen", "quantized", "coded", "verified")
        assert seen == dict.fromkeys(stages, count)
        if executor is not None:
            executor.shutdown()


# What breaks, each with a part of the message that tells it.


def change_values(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[..., Any]) -> None:
    """Let the decoder change the values of a tensor."""
    original = stream_decoder.decode_data_unit

    def decode(*arguments: Any, **options: Any) -> Any:
        return [
            replace(tensor, values=change(tensor.values)) if tensor.name == name else tensor
            for tensor in original(*arguments, **options)
        ]

    monkeypatch.setattr(stream_decoder, "decode_data_unit", decode)


def with_last(values: np.ndarray, change: Callable[[Any], Any]) -> np.ndarray:
    values = values.copy()
    values.reshape(-1)[-1] = change(values.reshape(-1)[-1])
    return values


def refused(model: Any, options: EncodeOptions | None = None) -> str:
    """Return the message of the error, with which no file appears and an old one stays."""
    with pytest.raises(VerificationMismatch) as caught:
        nnr_codec.encode(model, options=options, verify=True)
    return str(caught.value)


def test_one_step_of_one_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    change_values(monkeypatch, "a.weight", lambda v: with_last(v, lambda last: last + 0.002))
    assert "'a.weight' comes back with the squared error" in refused(layers())


@pytest.mark.parametrize("name", ["float32", "bool", "int64", "bfloat16", "float8_e5m2"])
def test_one_exact_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = all_types()[name]
    changed = with_last(array, lambda last: array.dtype.type(not last))
    original = verification.DecodedModel._load
    monkeypatch.setattr(
        verification.DecodedModel, "_load", lambda self, n: (original(self, n), changed)[1]
    )
    message = refused({"w": array}, EncodeOptions(lossless=True))
    assert message == "'w' does not come back bit by bit"


def test_sign_of_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"w": np.array([[1.5, 0.0]], np.float32)}
    change_values(monkeypatch, "w", lambda values: with_last(values, lambda last: -last))
    assert "bit by bit" in refused(model, EncodeOptions(lossless=True))


def test_weight_of_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    for carriage, name in (("dc", "d.weight"), ("factors", "d.weight.factor0")):
        with monkeypatch.context() as patch:
            change_values(patch, name, lambda v: with_last(v, lambda last: last + 0.01))
            options = decomposed("lr", rank=0.4, carriage=carriage)
            assert refused(layers(), options).startswith("'d.weight' comes back with")


def test_value_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    change_values(monkeypatch, "a.weight", lambda v: with_last(v, lambda last: np.nan))
    assert "squared error nan" in refused(layers())


def test_report_of_another_error(monkeypatch: pytest.MonkeyPatch) -> None:
    original = weight_errors.weight_error

    def wrong(*arguments: Any) -> Distortion:
        error = original(*arguments)
        return replace(error, squared_error=1.0001 * error.squared_error)

    monkeypatch.setattr(weight_errors, "weight_error", wrong)
    assert "as reported" in refused(layers(), decomposed("lr", rank=0.4))


def test_encoder_that_codes_another_integer(monkeypatch: pytest.MonkeyPatch) -> None:
    original = tensor_encoder.quantize_tensor

    def wrong(*arguments: Any) -> Any:
        quantized = original(*arguments)
        return replace(quantized, levels=with_last(quantized.levels, lambda last: last + 1))

    monkeypatch.setattr(tensor_encoder, "quantize_tensor", wrong)
    assert "as reported" in refused(layers())


def test_encoder_that_writes_a_damaged_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    original = tensor_encoder.TensorEncoder.encode

    def damaged(self: Any) -> Any:
        encoded = original(self)
        return replace(encoded, data=encoded.data[:-1] + b"\0")

    monkeypatch.setattr(tensor_encoder.TensorEncoder, "encode", damaged)
    assert refused(layers()).startswith("cannot be decoded: the bitstream: unit ")


def outlined_as(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], list[Any]]) -> None:
    """Let decoders have other parameters."""
    original = verification.DecodedModel.__init__

    def init(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self.parameters = change(self.parameters)

    monkeypatch.setattr(verification.DecodedModel, "__init__", init)


@pytest.mark.parametrize(
    "change",
    [
        lambda parameters: parameters[::-1],
        lambda parameters: parameters[:-1],
        lambda parameters: [*parameters, parameters[0]],
        lambda parameters: [replace(parameters[0], name="other"), *parameters[1:]],
        lambda parameters: [replace(parameters[0], shape=(600,)), *parameters[1:]],
        lambda parameters: [replace(parameters[0], dtype=np.dtype("f8")), *parameters[1:]],
        lambda parameters: [replace(parameter, tied_to=None) for parameter in parameters],
    ],
    ids=["order", "missing", "more", "name", "shape", "dtype", "ties"],
)
def test_other_parameters(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outlined_as(monkeypatch, change)
    message = refused(tied())
    assert message.startswith("there is ")
    assert "in the stream in place of " in message


def test_values_of_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    original = verification.DecodedModel._load

    def load(self: Any, name: str) -> Any:
        values = original(self, name)
        return values[::-1].copy() if name == "third" else values

    monkeypatch.setattr(verification.DecodedModel, "_load", load)
    assert refused(tied()).startswith("'third' comes back")


def test_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    original = StreamMap.note

    def note(self: StreamMap, parsed: Any) -> None:
        original(self, parsed)
        self.metadata.pop("author", None)

    monkeypatch.setattr(StreamMap, "note", note)
    assert refused(tied()) == "the metadata come back otherwise"


def test_only_what_is_asked_for_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    change_values(monkeypatch, "a.weight", lambda values: values + 1)
    nnr_codec.encode(layers())


@pytest.mark.parametrize("old", [None, b"old"])
def test_files(old: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.nnr"
    if old is not None:
        out.write_bytes(old)
    with monkeypatch.context() as patch:
        change_values(patch, "a.weight", lambda values: values + 1)
        with pytest.raises(VerificationMismatch):
            nnr_codec.encode(layers(), out, verify=True, overwrite=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if old is None else [old])
    nnr_codec.encode(layers(), out, verify=True, overwrite=True)
    assert list(nnr_codec.load_file(out)) == list(layers())


def test_model_that_changes_is_no_mismatch() -> None:
    reads: Iterator[np.ndarray] = iter([weights(20, 30)] * 2 + [weights(5)])
    parameter = Parameter("w", (20, 30), np.dtype(np.float32), lambda: next(reads))
    with pytest.raises(InvalidModel, match="declared as"):
        nnr_codec.encode(Model([parameter]), verify=True)
