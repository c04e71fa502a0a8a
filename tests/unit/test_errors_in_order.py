"""Which of several errors is raised: the first in the order of the stream, with threads too."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions, InvalidModel
from nnr_codec.errors import InvalidBitstream
from nnr_codec.model import Array, Model, Parameter

each_executor = pytest.mark.parametrize("threads", [0, 1, 3])


def executor_of(threads: int) -> AbstractContextManager[Executor | None]:
    return ThreadPoolExecutor(threads) if threads else nullcontext()


def weights(seed: int, size: int = 40) -> Array:
    return np.random.default_rng(seed).normal(0, 0.05, (size, size)).astype(np.float32)


def failing(name: str, reads: int = 0) -> Parameter:
    """Return a tensor that can be read so many times with the same values, on a step, and is then
    another one, or cannot be read at all."""
    left = [reads]

    def load() -> Array:
        if not reads:
            raise InvalidModel(name, "cannot be read")
        left[0] -= 1
        return np.full((4, 4), 0.5 if left[0] >= 0 else 1 / 3, np.float32)

    return Parameter(name, (4, 4), np.dtype(np.float32), load)


@pytest.fixture
def unreadable() -> Model:
    """The second tensor and the last cannot be read."""
    first = Parameter.from_array("a", weights(0))
    return Model([first, failing("b"), failing("c")])


@each_executor
def test_of_encoding(unreadable: Model, threads: int) -> None:
    with executor_of(threads) as executor, pytest.raises(InvalidModel) as caught:
        nnr_codec.encode(unreadable, options=EncodeOptions(group=False), executor=executor)
    assert caught.value.parameter == "b"


@each_executor
def test_of_the_survey(unreadable: Model, threads: int) -> None:
    """All tensors are looked at before the first is coded, which the first of these cannot be."""
    options = EncodeOptions(lossless=True)
    model = Model([failing("changed", reads=1), unreadable["a"], unreadable["c"]])
    with executor_of(threads) as executor, pytest.raises(InvalidModel) as caught:
        nnr_codec.encode(model, options=options, executor=executor)
    assert caught.value.parameter == "c"
    with pytest.raises(InvalidModel, match="changed while") as caught:
        nnr_codec.encode(Model([failing("changed", reads=1)]), options=options)
    assert caught.value.parameter == "changed"


@each_executor
def test_of_decoding(threads: int) -> None:
    """The second tensor's codeword is damaged, and the stream ends within the last."""
    model = {name: weights(seed) for seed, name in enumerate("abcd")}
    data = bytearray(nnr_codec.encode(model, options=EncodeOptions(group=False)).data or b"")
    with nnr_codec.open(bytes(data)) as stream:
        sizes = [tensor.bytes for tensor in stream.info().tensors]
    end = len(data) - sum(sizes[2:])  # of the second tensor's unit
    data[end - 1] ^= 0xFF
    with executor_of(threads) as executor, pytest.raises(InvalidBitstream, match="'b'") as caught:
        nnr_codec.decode(bytes(data[:-20]), executor=executor)
    assert "codeword" in caught.value.reason
