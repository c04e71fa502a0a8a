"""The bitstreams that the reference implementation wrote, with the tensors that it decodes.

`peer_vectors` holds 120 of them (`NAME.nnc`, `NAME.npz`) and `index.json` with the options of each;
entries with a `series` belong together, in the order of `step`. They were written by NNCodec 2.1.3
(PyPI) from random tensors of our own.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nnr_codec import decode
from nnr_codec.bitstream import DataUnit, ParsedUnit, PayloadType, parse_units
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.encoding.unit_encoder import CodedLevels, encode_data_unit, encode_raw_floats

FOLDER = Path(__file__).with_name("peer_vectors")
INDEX: list[dict[str, Any]] = json.loads((FOLDER / "index.json").read_text())
NAMES = [entry["name"] for entry in INDEX]
FLAG_CONTEXTS = 6
# Units in which the reference, with dependent quantization and block rows, does not flag every row
# of zeros as skipped. Our encoder flags all of them, and would write other bytes.
UNFLAGGED_ROWS = {
    ("rows_scan1_dq", "w33"),
    ("rows_scan1_dq", "w63"),
    ("rows_scan2_dq", "w50"),
    ("rows_scan2_dq", "w63"),
    ("rows_scan3_dq", "w41"),
    ("hist_tca_scan2_1", "w"),
}
EDUCATIONAL = Path(__file__).parents[2] / "spec" / "educational_decoder.py"


def _parents() -> dict[str, list[str]]:
    """The vectors before each one in its series."""
    series = defaultdict(list)
    for entry in sorted((e for e in INDEX if "series" in e), key=lambda e: e["step"]):
        series[entry["series"]].append(entry["name"])
    return {name: names[:i] for names in series.values() for i, name in enumerate(names)}


PARENTS = _parents()


def stream(name: str) -> bytes:
    return (FOLDER / f"{name}.nnc").read_bytes()


def parents(name: str) -> list[bytes]:
    return [stream(parent) for parent in PARENTS.get(name, [])]


def expected(name: str) -> dict[str, np.ndarray]:
    """Its tensors: those with a codebook are binary64 there, and are rounded once."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        tensors = dict(archive)
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in tensors.items()}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(wanted)
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].shape == values.shape, name
        assert found[name].tobytes() == values.tobytes(), name


@pytest.fixture(scope="module")
def educational() -> ModuleType:
    spec = importlib.util.spec_from_file_location("educational_decoder", EDUCATIONAL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_the_vectors_are_complete() -> None:
    assert len(NAMES) == len(set(NAMES)) == 120
    assert {p.stem for p in FOLDER.glob("*.nnc")} == set(NAMES)
    assert sum(len(expected(name)) > 0 for name in NAMES) == 120
    assert len(PARENTS) > 20


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_decoded_exactly(name: str, threads: int) -> None:
    wanted = expected(name)
    with ThreadPoolExecutor(threads) as pool:
        executor = pool if threads > 1 else None
        dense = decode(stream(name), parents=parents(name), executor=executor)
        factors = decode(
            stream(name), parents=parents(name), layers="factorized", executor=executor
        )
    assert list(dense) == [n for n in dense if n in wanted]
    assert_same({**factors, **dense}, wanted)
    decomposed = [n.removesuffix("_G") for n in wanted if n.endswith("_G")]
    assert all(n in dense and n not in factors for n in decomposed)


@pytest.mark.parametrize("name", NAMES)
def test_decoded_by_the_educational_decoder(name: str, educational: ModuleType) -> None:
    assert_same(educational.decode(stream(name), parents(name), True), expected(name))


class Spy:
    """What the educational decoder sees in codewords, and its API does not give: choices."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self.tensors: list[Any] = []
        self.qp_deltas: list[int] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the tensors that are decoded, with their integers before the doubling."""
        module, spy = self._module, self
        coded_tensor, read_qp_delta = module.CodedTensor, module.read_qp_delta

        class Watched(coded_tensor):  # type: ignore[misc, valid-type]
            def decode(self) -> np.ndarray:
                spy.tensors.append(self)
                self.levels = []
                return super().decode()

            def decode_integer(self, base: int, seen: bool) -> int:
                self.levels.append(super().decode_integer(base, seen))
                return self.levels[-1]

        def watched_qp_delta(*arguments: Any) -> int:
            spy.qp_deltas.append(read_qp_delta(*arguments))
            return spy.qp_deltas[-1]

        module.CodedTensor, module.read_qp_delta = Watched, watched_qp_delta
        try:
            yield
        finally:
            module.CodedTensor, module.read_qp_delta = coded_tensor, read_qp_delta


def _scan(tensor: Any) -> list[int]:
    """The positions of a tensor's coded integers, in the order of the codeword."""
    if tensor.codebook_size == 1:
        return []
    side = 4 << tensor.scan_order if tensor.scan_order else max(tensor.rows, tensor.cols)
    skipped = tensor.row_skipped or [0] * tensor.rows
    return [
        row * tensor.cols + col
        for top in range(0, tensor.rows, side)
        for left in range(0, tensor.cols, side)
        for row in range(top, min(top + side, tensor.rows))
        if not skipped[row]
        for col in range(left, min(left + side, tensor.cols))
    ]


def _choices(tensor: Any, qp: int) -> CodedLevels:
    """What our encoder needs to write the tensor as it was written.

    It wants an index for the contexts of flags as well, which have none in the codeword.
    """
    levels = np.zeros(tensor.rows * tensor.cols, np.int32)
    levels[_scan(tensor)] = tensor.levels
    return CodedLevels(
        levels,
        qp,
        row_skipping=len(tensor.row_skipped) > 0,
        history_enabled=tensor.history is not None,
        search_initialization=False,
        indices=tuple(model.e for model in tensor.contexts) + (0,) * FLAG_CONTEXTS,
    )


def _has_unflagged_row(tensor: Any) -> bool:
    """Whether rows are skipped, but not all that are zero."""
    if not len(tensor.row_skipped):
        return False
    levels = np.zeros(tensor.rows * tensor.cols, np.int32)
    levels[_scan(tensor)] = tensor.levels
    zero = ~levels.reshape(tensor.rows, -1).any(axis=1)
    return bool(np.any(zero & ~np.array(tensor.row_skipped, bool)))


def _again(parsed: ParsedUnit, spy: Spy, parent_data: Any) -> bytes:
    """Encode a data unit again; takes what it needs off the spy's lists."""
    record = parsed.record
    assert isinstance(record, DataUnit)
    if record.payload_type == PayloadType.RAW_FLOAT:
        values = np.frombuffer(parsed.payload, "<f4")
        return encode_raw_floats(record, values, parsed.context)
    coded = {}
    _, base_qp = parsed.context.quantization or (0, 0)
    for role in record.coding_roles():
        qp = 0 if record.payload_type == PayloadType.INT else base_qp + spy.qp_deltas.pop(0)
        coded[role] = _choices(spy.tensors.pop(0), qp)
    return encode_data_unit(record, coded, parsed.context, parent_data)


@pytest.mark.parametrize("name", NAMES)
def test_written_again_byte_for_byte(name: str, educational: ModuleType) -> None:
    """Every data unit, given its integers and initialization indices."""
    spy = Spy(educational)
    series = educational.Series()
    for parent in parents(name):
        series.append(educational.decode_bitstream(parent, series))
    with spy.watching():
        educational.decode_bitstream(stream(name), series)
    ours = StreamDecoder(parents=parents(name)).series

    def parent_data(tensor: str, elements: int) -> Any:
        return ours.parent_data(tensor, elements, label="", offset=0)

    units = [u for u in parse_units(stream(name)) if isinstance(u.record, DataUnit)]
    for parsed in units:
        unflagged = bool(spy.tensors) and _has_unflagged_row(spy.tensors[0])
        again = _again(parsed, spy, parent_data)
        assert unflagged == ((name, parsed.record.names[0]) in UNFLAGGED_ROWS)
        assert (again == bytes(parsed.unit.data)) != unflagged, parsed.record.names
    assert units
    assert not spy.tensors
    assert not spy.qp_deltas
