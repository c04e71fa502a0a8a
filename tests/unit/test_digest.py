"""The digest of a model: a pinned value, what it depends on, and what it does not."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from nnr_codec.errors import InvalidModel
from nnr_codec.support.digest import digest

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.array([-1, 2], dtype=np.int16)
PINNED = "80973fc4df09c9145bfdcc22781690fa6232f81de3d0b4989c36488777bfc033"


def test_value_is_pinned() -> None:
    tensors = [("conv.weight", WEIGHT), ("bias", BIAS), ("ß", np.array(True))]
    assert digest(tensors) == PINNED


def test_serialization_is_the_documented_one() -> None:
    expected = b"".join(
        [
            struct.pack("<Q", 4) + b"bias",
            struct.pack("<Q", 5) + b"int16",
            struct.pack("<QQ", 1, 2),
            struct.pack("<Q", 4) + struct.pack("<hh", -1, 2),
        ]
    )
    assert digest([("bias", BIAS)]) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize(
    "same",
    [WEIGHT.astype(">f4"), np.asfortranarray(WEIGHT), np.repeat(WEIGHT, 2, axis=1)[:, ::2]],
    ids=["big-endian", "column-major", "strided"],
)
def test_memory_layout_does_not_matter(same: np.ndarray) -> None:
    assert digest([("w", same)]) == digest([("w", WEIGHT)])


@pytest.mark.parametrize(
    "other",
    [
        [("v", WEIGHT)],
        [("w", WEIGHT.reshape(3, 2))],
        [("w", WEIGHT.reshape(6))],
        [("w", WEIGHT.view(np.int32))],
        [("w", WEIGHT), ("x", np.zeros(0, np.float32))],
        [("w", WEIGHT + np.float32(1e-3))],
    ],
    ids=["name", "shape", "dimensions", "dtype", "empty tensor more", "values"],
)
def test_all_else_matters(other: list[tuple[str, np.ndarray]]) -> None:
    assert digest(other) != digest([("w", WEIGHT)])


def test_order_matters() -> None:
    tensors = [("w", WEIGHT), ("b", BIAS)]
    assert digest(tensors) != digest(tensors[::-1])


def test_negative_zero_differs() -> None:
    assert digest([("z", np.float32([-0.0]))]) != digest([("z", np.float32([0.0]))])


def test_tensors_are_consumed_one_at_a_time() -> None:
    alive = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def tensors():
        nonlocal alive
        for index in range(5):
            assert alive <= 1
            alive += 1
            yield str(index), np.zeros(3, np.float32).view(Counted)

    assert len(digest(tensors())) == 64


@pytest.mark.parametrize(
    ("name", "values"),
    [("w", np.array([object()])), ("w", np.zeros(2, complex)), ("\ud800", WEIGHT)],
    ids=["objects", "complex", "surrogate"],
)
def test_what_cannot_be_coded_is_refused(name: str, values: np.ndarray) -> None:
    with pytest.raises(InvalidModel) as caught:
        digest([(name, values)])
    assert caught.value.parameter == name
