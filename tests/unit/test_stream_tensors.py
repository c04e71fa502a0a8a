"""Tensors are handed out one by one, as soon as their units have arrived, and then let go."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from streaming_support import NAMES, expected, stream, unit_ends

import nnr_codec
from nnr_codec.support.read_ahead import MAX_AHEAD, MAX_AHEAD_BYTES, ItemsAhead

LONG = 60  # seconds, beyond which something hangs


@pytest.fixture(params=["no executor", "threads"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor | None]:
    if request.param == "no executor":
        yield None
    else:
        with ThreadPoolExecutor(2) as pool:
            yield pool


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The ends of a pipe: to read, and to write without a buffer."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb", buffering=0) as sink:
        yield source, sink


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "nnr-read-ahead"]


def await_no_reading_threads() -> None:
    end = time.monotonic() + LONG
    while reading_threads() and time.monotonic() < end:
        time.sleep(0.001)
    assert reading_threads() == []


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_is_what_decode_gives(executor: Executor | None, tmp_path: Path) -> None:
    path = tmp_path / "model.nnr"
    path.write_bytes(stream())
    for source in (stream(), path, open(path, "rb")):  # noqa: SIM115
        tensors = list(nnr_codec.stream_tensors(source, executor=executor))
        assert [name for name, _ in tensors] == NAMES
        for name, values in tensors:
            np.testing.assert_array_equal(values, expected()[name], strict=True)
        if not isinstance(source, bytes | Path):
            assert not source.closed
            source.close()


def test_arguments_are_those_of_decode() -> None:
    (named,) = nnr_codec.stream_tensors(stream(), only="3.*")
    assert named[0] == "3.weight"
    with pytest.raises(nnr_codec.InvalidOptions, match="layers"):
        nnr_codec.stream_tensors(stream(), layers="sparse")  # type: ignore[arg-type]


def test_each_tensor_comes_before_the_next_unit(
    executor: Executor | None, pipe: tuple[BinaryIO, BinaryIO]
) -> None:
    source, sink = pipe
    tensors = nnr_codec.stream_tensors(source, executor=executor)
    with ThreadPoolExecutor(1) as user:
        start = 0
        for name, end in zip(NAMES, unit_ends(), strict=True):
            sink.write(stream()[start:end])
            sink.write(stream()[end : end + 1])  # something of the next unit is there
            start = end + 1
            assert user.submit(next, tensors).result(LONG)[0] == name
        sink.close()
        assert user.submit(next, tensors, None).result(LONG) is None


def test_tensors_are_decoded_while_others_arrive() -> None:
    """With threads, those that have arrived are decoded side by side."""
    reads, writes = os.pipe()
    with os.fdopen(writes, "wb") as sink:
        sink.write(stream())
    with ThreadPoolExecutor(2) as pool, os.fdopen(reads, "rb") as source:
        found = dict(nnr_codec.stream_tensors(source, executor=pool))
    assert list(found) == NAMES
    await_no_reading_threads()


def test_nothing_is_kept_when_the_next_unit_is_read() -> None:
    handed_out: list[weakref.ref[np.ndarray]] = []

    class Watching(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert [array for array in handed_out if array() is not None] == []
            return super().read(size)

    tensors = nnr_codec.stream_tensors(Watching(stream()))
    while (tensor := next(tensors, None)) is not None:
        handed_out.append(weakref.ref(tensor[1]))
        del tensor
    assert len(handed_out) == len(NAMES)


def test_errors_come_behind_the_tensors_before_them(
    executor: Executor | None, pipe: tuple[BinaryIO, BinaryIO]
) -> None:
    source, sink = pipe
    sink.write(stream()[: unit_ends()[2] + 9])
    sink.close()
    tensors = nnr_codec.stream_tensors(source, executor=executor)
    assert [next(tensors)[0] for _ in range(3)] == NAMES[:3]
    with pytest.raises(nnr_codec.TruncatedBitstream):
        next(tensors)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="tells open files on Linux alone")
def test_files_are_closed(executor: Executor | None, tmp_path: Path) -> None:
    path = tmp_path / "model.nnr"
    path.write_bytes(stream())
    before = open_files()
    tensors = nnr_codec.stream_tensors(path, executor=executor)
    next(tensors)
    if executor is None:  # threads may have read it all
        assert open_files() == before + 1
    tensors.close()
    assert open_files() == before
    dropped = nnr_codec.stream_tensors(path, executor=executor)
    next(dropped)
    del dropped
    assert open_files() == before
    list(nnr_codec.stream_tensors(path, executor=executor))
    assert open_files() == before


def test_closing_does_not_wait_for_the_source(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    source, sink = pipe
    sink.write(stream()[: unit_ends()[0]])
    with ThreadPoolExecutor(2) as pool:
        tensors = nnr_codec.stream_tensors(source, executor=pool)
        next(tensors)
        tensors.close()
    assert len(reading_threads()) == 1  # it waits for the pipe
    sink.close()
    await_no_reading_threads()


def test_what_a_pipe_has_in_its_buffer_is_not_lost(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    source, sink = pipe
    sink.write(b"a line\n" + stream())
    assert source.readline() == b"a line\n"  # and some of the stream is in the buffer
    sink.close()
    with ThreadPoolExecutor(2) as pool:
        assert [name for name, _ in nnr_codec.stream_tensors(source, executor=pool)] == NAMES


def test_a_program_can_end_while_standard_input_is_waited_for(tmp_path: Path) -> None:
    program = (
        "import sys, concurrent.futures, nnr_codec\n"
        "with concurrent.futures.ThreadPoolExecutor(2) as pool:\n"
        "    print(next(nnr_codec.stream_tensors(sys.stdin.buffer, executor=pool))[0])\n"
    )
    command = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=tmp_path) as process:
        assert process.stdin is not None
        process.stdin.write(stream()[: unit_ends()[0] + 1])
        process.stdin.flush()  # and the pipe stays open
        assert process.wait(LONG) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b"0.weight\n"


def test_no_more_is_read_ahead_than_a_few_items() -> None:
    made: list[int] = []

    def numbers() -> Generator[int, None, None]:
        for number in range(3 * MAX_AHEAD):
            made.append(number)
            yield number

    with ItemsAhead(numbers(), lambda number: 1) as ahead:
        items = iter(ahead)
        assert next(items) == 0
        end = time.monotonic() + LONG
        while len(made) < MAX_AHEAD + 1 and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(made) == MAX_AHEAD + 1
        assert ahead.has_next()
        assert list(items) == list(range(1, 3 * MAX_AHEAD))


@pytest.mark.parametrize("size", [MAX_AHEAD_BYTES // 3, MAX_AHEAD_BYTES, 2 * MAX_AHEAD_BYTES])
def test_no_more_is_read_ahead_than_some_bytes(size: int) -> None:
    made: list[int] = []
    most = -(-MAX_AHEAD_BYTES // size)  # the last of which goes beyond, if any does

    def numbers() -> Generator[int, None, None]:
        for number in range(10):
            made.append(number)
            yield number

    with ItemsAhead(numbers(), lambda number: size) as ahead:
        for number, taken in enumerate(ahead, 1):
            assert taken == number - 1
            end = time.monotonic() + LONG
            while len(made) < min(10, number + most) and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(0.01)
            assert len(made) == min(10, number + most)


def test_updates_of_a_base(executor: Executor | None, pipe: tuple[BinaryIO, BinaryIO]) -> None:
    source, sink = pipe
    changed = {name: values + np.float32(0.05) for name, values in expected().items()}
    update = nnr_codec.encode(changed, base=[stream()]).data or b""
    sink.write(update)
    sink.close()
    found = dict(nnr_codec.stream_tensors(source, base=[stream()], executor=executor))
    whole = nnr_codec.decode(update, base=[stream()])
    assert list(found) == list(whole) == NAMES
    assert all(np.array_equal(found[name], values) for name, values in whole.items())
