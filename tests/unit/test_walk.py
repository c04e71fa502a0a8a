"""The walk of tensors, where there are many."""

from __future__ import annotations

import time
from typing import Any

from nnr_codec.decoding.stream_map import Selection, StreamMap
from nnr_codec.decoding.walk import Walk
from nnr_codec.factorization.model_map import ModelMap
from nnr_codec.factorization.tensor_order import TensorOrder


class Tensor:
    role = "weight"

    def __init__(self, name: str) -> None:
        self.name = name


def test_many_tensors_that_wait_for_the_last_unit() -> None:
    """A stream of blocks ordered by name, whose second tensors all come behind the first ones."""
    count = 300_000
    stream = StreamMap()
    stream.model_map = ModelMap(order=TensorOrder(by_name=True))
    units = [[Tensor(f"a{i:06}"), Tensor(f"b{i:06}")] for i in range(count)]
    walk: Walk[Any] = Walk(stream, Selection(), maker=None)  # type: ignore[arg-type]
    names = []
    for tensor in walk.tensors(units):
        names.append(tensor.name)
        if len(names) == count:  # the others come all at once
            start = time.thread_time()
    assert time.thread_time() - start < 5  # linear: half a second; quadratic: a dozen
    assert names == [f"a{i:06}" for i in range(count)] + [f"b{i:06}" for i in range(count)]
