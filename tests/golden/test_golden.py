"""The encoder's bytes, pinned: a change of output is noticed, and made on purpose.

The model is made of integers and divisions by powers of two: it is the same on every machine. After
an intended change, ``python tests/golden/test_golden.py`` writes the new pins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.options import PRESETS

PINS = Path(__file__).with_name("pins.json")
Arrays = dict[str, np.ndarray]


class Lcg:
    """Numerical Recipes' 32-bit generator, of which the high bits are used."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def below(self, bits: int) -> int:
        self._state = (1664525 * self._state + 1013904223) % 2**32
        return self._state >> (32 - bits)


def bell(lcg: Lcg, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Sums of four uniform numbers around 0, in multiples of 2**-10 and a little: on no step that
    would say them exactly, except in float16, which rounds the little away."""
    count = int(np.prod(shape))
    sums = [sum(lcg.below(8) for _ in range(4)) - 510 for _ in range(count)]
    return (np.array(sums, np.float64) / 1024 * (1 + 2**-12)).astype(dtype).reshape(shape)


@cache
def model(seed: int = 1) -> Arrays:
    """A small model: convolution, sparse and dense matrices, vectors, a scalar, narrow floats."""
    lcg = Lcg(seed)
    arrays = {
        "conv.weight": bell(lcg, (16, 8, 3, 3)),
        "conv.bias": bell(lcg, (16,)),
        "sparse.weight": bell(lcg, (70, 33)),
        "half": bell(lcg, (12, 7), "float16"),
        "double": bell(lcg, (5, 4), "float64"),
        "scalar": bell(lcg, ()),
    }
    arrays["sparse.weight"][np.abs(arrays["sparse.weight"]) < 0.25] = 0
    arrays["sparse.weight"][10:30] = 0
    return arrays


@cache
def integer_model() -> Arrays:
    lcg = Lcg(5)
    kinds = {"int8": 7, "uint8": 8, "int16": 12, "int32": 20, "int64": 20, "uint32": 16, "bool": 1}
    arrays = {}
    for dtype, bits in kinds.items():
        values = np.array([lcg.below(bits) for _ in range(60)], np.int64)
        arrays[dtype] = values.astype(dtype).reshape(12, 5)
    arrays["steps"] = np.array(12345)
    return arrays


@cache
def exact_model() -> Arrays:
    """A tensor for each exact representation: step, grid, table, bits, halves."""
    lcg = Lcg(7)
    steps = np.array([lcg.below(4) - 8.0 for _ in range(600)]).reshape(60, 10)
    table = bell(lcg, (16,)) / np.float32(3)
    return {
        "step": (steps * 0.375).astype(np.float32),
        "grid": (steps * 0.0123).astype(np.float32),
        "table": table[[lcg.below(2) ** 2 for _ in range(600)]].reshape(60, 10),
        "bits": bell(lcg, (40, 20), "float16"),
        "double": bell(lcg, (9, 5), "float64") / 3,
        "integers": np.array([lcg.below(30) << lcg.below(5) for _ in range(60)], np.int64),
        "unsigned": np.array([2**32 - lcg.below(8) for _ in range(60)]).astype(np.uint32),
    }


@cache
def difference(seed: int) -> Arrays:
    """An update: the same few weights change, by amounts of their own, so that contexts pay."""
    arrays = {}
    for (name, values), amounts in zip(model().items(), model(seed).values(), strict=True):
        changes = np.sign(values) * (np.abs(values) > 0.2)
        arrays[name] = (changes * (0.25 + np.abs(amounts) / 8)).astype(values.dtype)
    return arrays


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "uniform": {"dq": False},
    "dq rate": {"lambda_scale": 1.0, "qp": -16},
    "uniform rate": {"dq": False, "lambda_scale": 1.0, "qp": -16},
    "density 0": {"qp_density": 0, "qp": -6, "nonweight_qp": -12},
    "density 3": {"qp_density": 3, "qp": -50, "nonweight_qp": -100},
    "unary 3": {"unary_length": 3},
    "unary 256": {"unary_length": 256, "qp": -20},
    "scan 1": {"scan_order": 1},
    "scan 2 uniform": {"scan_order": 2, "dq": False},
    "scan 4 rate": {"scan_order": 4, "lambda_scale": 1.0, "qp": -16},
    "no search": {"search_initialization": False},
    "row skipping": {"row_skipping": True, "qp": -12},
    "codebook": {"codebook": True, "dq": False, "qp": -12},
    "no group": {"group": False},
    "target size": {"target_size": 2000},
    "fast": {**PRESETS["fast"], "dq": False, "qp": -12},
    "best": dict(PRESETS["best"]),
    "profile 1": {"profile": 1},
    "raw": {"exclude": ("*",)},
    "some raw": {"include": ("*weight",)},
    "overrides": {"overrides": (("conv.*", {"dq": False, "qp": -8}), ("half", {"scan_order": 1}))},
}


def encoded(
    arrays: Arrays,
    executor: Executor | None = None,
    parents: tuple[bytes, ...] = (),
    **options: Any,
) -> bytes:
    result = nnr_codec.encode(
        arrays, options=EncodeOptions(**options), parents=parents, executor=executor
    )
    assert result.data is not None
    return result.data


def series(executor: Executor | None = None, **options: Any) -> list[bytes]:
    """A model and two updates."""
    streams = [encoded(model(), executor, **options)]
    for seed in (2, 3):
        streams.append(encoded(difference(seed), executor, tuple(streams), **options))
    return streams


SERIES: dict[str, dict[str, Any]] = {
    "update": {"qp": -16},
    "update uniform": {"qp": -16, "dq": False, "row_skipping": True},
    "update scan 1": {"qp": -16, "scan_order": 1},
    "update without contexts": {
        "qp": -16,
        "temporal_contexts": False,
        "history_contexts": False,
    },
}


def streams_of(case: str, executor: Executor | None = None) -> list[bytes]:
    if case in SERIES:
        return series(executor, **SERIES[case])
    if case == "integers":
        return [encoded(integer_model(), executor)]
    if case in EXACT:
        return [encoded(exact_model(), executor, **EXACT[case])]
    return [encoded(model(), executor, **CASES[case])]


EXACT: dict[str, dict[str, Any]] = {
    "lossless": {"lossless": True},
    "on steps": {},
}

ALL = [*CASES, "integers", *EXACT, *SERIES]


def pins_of(streams: list[bytes]) -> list[dict[str, Any]]:
    return [{"bytes": len(s), "sha256": hashlib.sha256(s).hexdigest()} for s in streams]


@pytest.fixture(scope="module")
def executors() -> Iterator[list[ThreadPoolExecutor]]:
    made = [ThreadPoolExecutor(count) for count in (1, 2, 4)]
    yield made
    for executor in made:
        executor.shutdown()


@cache
def pins() -> dict[str, Any]:
    return json.loads(PINS.read_text())


def test_every_case_is_pinned() -> None:
    assert list(pins()) == ALL


def test_the_model_is_the_same_everywhere() -> None:
    digest = hashlib.sha256()
    for arrays in (*(model(), model(2), model(3), integer_model(), exact_model(), difference(2)),):
        for name, values in arrays.items():
            digest.update(name.encode() + values.astype(values.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == MODEL_SHA256


MODEL_SHA256 = "a1d3fafb0462d5731a0262031c913a2ac9fde9de9928feeee4907e33a429fc10"


@pytest.mark.parametrize("case", ALL)
def test_bytes_are_pinned(case: str) -> None:
    found = pins_of(streams_of(case))
    assert found == pins()[case], f"{case}: the output has changed (see the module's docstring)"


@pytest.mark.parametrize("case", ALL)
def test_bytes_do_not_depend_on_threads(case: str, executors: list[ThreadPoolExecutor]) -> None:
    alone = streams_of(case)
    assert streams_of(case) == alone
    for executor in executors:
        assert streams_of(case, executor) == alone


@pytest.mark.parametrize("case", ALL)
def test_what_is_pinned_decodes(case: str, executors: list[ThreadPoolExecutor]) -> None:
    """Alone and with threads, to the model within the quantization step, or exactly."""
    streams = streams_of(case)
    expected = integer_model() if case == "integers" else model()
    expected = exact_model() if case in EXACT else expected
    decoded = nnr_codec.decode(streams[0])
    assert list(decoded) == list(expected)
    exact = case in ("integers", "raw", "lossless")
    for name, values in expected.items():
        found = decoded[name].reshape(values.shape)
        assert np.array_equal(found, values) if exact else np.abs(found - values).max() < 0.5
    for step, stream in enumerate(streams):
        alone = nnr_codec.decode(stream, parents=streams[:step])
        for executor in executors:
            again = nnr_codec.decode(stream, parents=streams[:step], executor=executor)
            assert list(again) == list(alone)
            assert all(np.array_equal(again[name], alone[name]) for name in alone)


def test_contexts_pay() -> None:
    """Else the pins of the updates would not watch the contexts."""
    with_contexts, without = pins()["update"], pins()["update without contexts"]
    assert all(a["bytes"] < b["bytes"] for a, b in zip(with_contexts[1:], without[1:], strict=True))


def test_the_options_matter() -> None:
    """No two cases have the same bytes, so that each pin watches something."""
    digests = [pin["sha256"] for case in [*CASES, "integers", *EXACT] for pin in pins()[case]]
    assert len(set(digests)) == len(digests)


if __name__ == "__main__":
    PINS.write_text(json.dumps({case: pins_of(streams_of(case)) for case in ALL}, indent=1) + "\n")
