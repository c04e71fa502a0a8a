"""Tensors as they arrive for asyncio: any source, no more of it than is needed, no thread left."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming_support import NAMES, expected, stream, unit_ends

import nnr_codec
from nnr_codec.model import Array

LONG = 60  # seconds, beyond which something hangs


@pytest.fixture(params=["no executor", "threads"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor | None]:
    if request.param == "no executor":
        yield None
    else:
        with ThreadPoolExecutor(2) as pool:
            yield pool


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    end = time.monotonic() + LONG
    while our_threads() and time.monotonic() < end:
        time.sleep(0.001)
    assert our_threads() == []


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("nnr-")]


async def chunks(size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(stream()), size):
        await asyncio.sleep(0)
        yield b""
        yield stream()[start : start + size]


def reader() -> asyncio.StreamReader:
    made = asyncio.StreamReader()
    made.feed_data(stream())
    made.feed_eof()
    return made


async def collected(source: Any, **arguments: Any) -> dict[str, Array]:
    return {n: v async for n, v in nnr_codec.stream_tensors_async(source, **arguments)}


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), LONG))


@pytest.mark.parametrize(
    "source",
    [chunks, lambda: chunks(3), lambda: chunks(1 << 20), reader, stream],
    ids=["chunks", "small chunks", "one chunk", "reader", "bytes"],
)
def test_any_source(source: Callable[[], Any], executor: Executor | None) -> None:
    async def main() -> dict[str, Array]:
        return await collected(source(), executor=executor)

    found = run(main)
    assert list(found) == NAMES
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected()[name], strict=True)


def test_paths_and_files(tmp_path: Path) -> None:
    path = tmp_path / "model.nnr"
    path.write_bytes(stream())
    assert list(run(lambda: collected(path, only="1.*"))) == ["1.weight"]
    with open(path, "rb") as file:
        assert list(run(lambda: collected(file))) == NAMES


def test_no_more_is_read_than_the_tensor_needs(executor: Executor | None) -> None:
    given = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal given
        for start in range(0, len(stream()), 100):
            given += len(stream()[start : start + 100])
            yield stream()[start : start + 100]

    async def main() -> None:
        async with aclosing(nnr_codec.stream_tensors_async(counted())) as tensors:
            for end in unit_ends():
                await anext(tensors)
                await asyncio.sleep(0.01)
                assert end <= given < end + 100

    run(main)


def test_the_first_tensor_comes_before_the_rest_of_the_source(executor: Executor | None) -> None:
    async def main() -> None:
        has_first = asyncio.Event()

        async def gated() -> AsyncIterator[bytes]:
            yield stream()[: unit_ends()[0]]
            await has_first.wait()
            yield stream()[unit_ends()[0] :]

        names = []
        async for name, _ in nnr_codec.stream_tensors_async(gated(), executor=executor):
            has_first.set()
            names.append(name)
        assert names == NAMES

    run(main)


def test_cancelled_while_the_source_waits(executor: Executor | None) -> None:
    async def main() -> None:
        is_cancelled = False

        async def stuck() -> AsyncIterator[bytes]:
            nonlocal is_cancelled
            yield stream()[: unit_ends()[0]]
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                is_cancelled = True
                raise

        names = []

        async def use() -> None:
            async for name, _ in nnr_codec.stream_tensors_async(stuck(), executor=executor):
                names.append(name)

        task = asyncio.create_task(use())
        while not names:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names == NAMES[:1]
        await asyncio.sleep(0.01)
        assert is_cancelled

    run(main)


def test_closed_early(executor: Executor | None) -> None:
    async def main() -> str:
        tensors = nnr_codec.stream_tensors_async(chunks(), executor=executor)
        async with aclosing(tensors):
            async for name, _ in tensors:
                return name
        return ""

    assert run(main) == NAMES[0]


def test_never_begun() -> None:
    async def main() -> None:
        tensors = nnr_codec.stream_tensors_async(stream())
        await tensors.aclose()

    run(main)


def test_errors_of_the_source_come_as_they_are(executor: Executor | None) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield stream()[:500]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        run(lambda: collected(broken(), executor=executor))


def test_errors_of_the_stream() -> None:
    async def short() -> AsyncIterator[bytes]:
        yield stream()[: unit_ends()[1] - 1]

    async def main() -> None:
        tensors = nnr_codec.stream_tensors_async(short())
        assert (await anext(tensors))[0] == NAMES[0]
        with pytest.raises(nnr_codec.TruncatedBitstream):
            await anext(tensors)

    run(main)
    with pytest.raises(nnr_codec.InvalidOptions, match="layers"):
        run(lambda: collected(stream(), layers="sparse"))


def test_the_loop_runs_meanwhile() -> None:
    """Decoding waits for a pipe in its thread."""
    reads, writes = os.pipe()

    async def main() -> dict[str, Array]:
        with os.fdopen(reads, "rb") as source, os.fdopen(writes, "wb") as sink:
            task = asyncio.create_task(collected(source))
            await asyncio.sleep(0.01)
            sink.write(stream())
            sink.close()
            return await task

    assert list(run(main)) == NAMES
