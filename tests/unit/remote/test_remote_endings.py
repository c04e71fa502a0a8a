"""Tensors of an address whose server stalls: who wants no more of them waits no more for it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from remote_support import Answer, FileServer, Request, serving

import nnr_codec

SOON = 8  # seconds, before the server of a test gives up, and long before we would
STALLS = 0.2  # seconds, after which what the server has sent has been read
ROOT = Path(nnr_codec.__file__).parents[1]
NAMES = [f"{number}.weight" for number in range(20)]
STREAM = (
    nnr_codec.encode(
        {
            name: np.random.default_rng(number).normal(0, 1, (96, 96))
            for number, name in enumerate(NAMES)
        }
    ).data
    or b""
)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What ends the waiting of the server, at the end of the test if not before."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def stalled(release: threading.Event) -> Iterator[FileServer]:
    """A server that stalls in its second answer."""
    rest = Answer(wait_after=20_000, go_on=release)
    with serving(STREAM) as server:
        server.behave = lambda number, request: rest if number else Answer()
        yield server


@pytest.fixture(autouse=True)
def no_thread_is_left(release: threading.Event) -> Iterator[None]:
    yield
    assert not release.is_set()
    wait_until(lambda: not our_threads())


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("nnr-")]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_iterator_that_is_closed(stalled: FileServer) -> None:
    with ThreadPoolExecutor(2) as pool:
        tensors = nnr_codec.stream_tensors(stalled.address, executor=pool)
        assert next(tensors)[0] == "0.weight"
        wait_until(lambda: len(stalled.requests) == 2)
        time.sleep(STALLS)
        assert our_threads() == ["nnr-read-ahead"]
        tensors.close()


async def cancelled(use: Callable[[], object], is_ripe: Callable[[], bool]) -> None:
    """Cancel a task that uses tensors, when it is ripe for that."""

    async def run() -> None:
        async for _ in use():  # type: ignore[attr-defined]
            pass

    task = asyncio.create_task(run())
    while not is_ripe():
        await asyncio.sleep(0.001)
    await asyncio.sleep(STALLS)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, SOON)


@pytest.mark.parametrize("threads", [0, 2])
def test_task_that_is_cancelled(stalled: FileServer, threads: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        executor = pool if threads else None
        asyncio.run(
            cancelled(
                lambda: nnr_codec.stream_tensors_async(stalled.address, executor=executor),
                lambda: len(stalled.requests) == 2,
            )
        )


def test_the_cache_is_free_when_the_loop_is_left(stalled: FileServer, tmp_path: Path) -> None:
    stalled.behave = lambda number, request: Answer()

    async def main() -> None:
        for _ in range(2):
            tensors = nnr_codec.stream_tensors_async(stalled.address, cache=tmp_path)
            assert [name async for name, _ in tensors] == NAMES

    asyncio.run(main())
    assert [request.range for request in stalled.requests[2:]] == [(0, 16384)]
    assert stalled.sent == len(STREAM)


@pytest.mark.parametrize("option", ["source", "base", "parents"])
def test_task_that_is_cancelled_while_a_file_is_opened(
    stalled: FileServer, release: threading.Event, option: str
) -> None:
    def behave(number: int, request: Request) -> Answer:
        release.wait()
        return Answer()

    stalled.behave = behave
    sources = {"source": STREAM, option: [stalled.address]}
    if option == "source":
        sources["source"] = stalled.address
    asyncio.run(
        cancelled(
            lambda: nnr_codec.stream_tensors_async(**sources),  # type: ignore[arg-type]
            lambda: len(stalled.requests) == 1,
        )
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_command_that_is_interrupted(stalled: FileServer, threads: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nnr_codec", "decode", stalled.address, "-o", "out.npz"]
    command += ["--threads", str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=pipe) as process:
        end = time.monotonic() + 60
        while len(stalled.requests) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(STALLS)
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == 130
    assert list(tmp_path.iterdir()) == []
