"""Bitstreams that are decoded from an address."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from remote_support import Answer, FileServer, no_waiting, serving

import nnr_codec
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.errors import TruncatedBitstream
from nnr_codec.remote.remote_file import RemoteFile

RNG = np.random.default_rng(0)
MODEL = {f"layer{n}.weight": RNG.normal(0, 0.05, (64, 64)).astype(np.float32) for n in range(40)}
STREAM = bytes(nnr_codec.encode(MODEL).data or b"")
EXPECTED = nnr_codec.decode(STREAM)


@pytest.fixture
def stream_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    no_waiting(monkeypatch)
    with serving(STREAM) as server:
        yield server


def decoded(file: RemoteFile) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.values for tensor in StreamDecoder().tensors(file)}


def test_decoded_twice_and_moved_once(stream_server: FileServer) -> None:
    with RemoteFile(stream_server.address) as file:
        for _ in range(2):
            file.seek(0)
            tensors = decoded(file)
            assert tensors.keys() == EXPECTED.keys()
            assert all(np.array_equal(tensors[name], EXPECTED[name]) for name in EXPECTED)
    assert stream_server.sent == len(STREAM)
    assert len(stream_server.requests) == 2


def test_every_reader_takes_an_open_file_and_tells_what_comes(stream_server: FileServer) -> None:
    readers = {
        "decode": nnr_codec.decode,
        "open": lambda file: dict(nnr_codec.open(file)),
        "stream_tensors": lambda file: dict(nnr_codec.stream_tensors(file)),
    }
    for name, reader in readers.items():
        arrived: list[int] = []
        with nnr_codec.RemoteFile(stream_server.address, progress=arrived.append) as file:
            tensors = reader(file)
        assert all(np.array_equal(tensors[key], EXPECTED[key]) for key in EXPECTED), name
        assert sum(arrived) == len(STREAM), name
        assert len(arrived) > 1, name


def test_first_tensors_come_before_the_rest(stream_server: FileServer) -> None:
    rest = Answer(wait_after=10_000)
    stream_server.behave = lambda number, request: rest if number else Answer()
    with RemoteFile(stream_server.address) as file:
        tensors = StreamDecoder().tensors(file)
        first = next(tensors)
        assert np.array_equal(first.values, EXPECTED[first.name])
        assert not rest.go_on.is_set()
        assert file.byte_count <= 26_384 < len(STREAM) / 2
        rest.go_on.set()
        assert len(list(tensors)) == len(EXPECTED) - 1


def test_cut_for_good(stream_server: FileServer) -> None:
    """An error of the address, and never of the bitstream."""
    for percent in range(0, 100, 5):
        place = len(STREAM) * percent // 100

        def behave(number: int, request: object, place: int = place) -> Answer:
            start = request.range[0]  # type: ignore[attr-defined]
            return Answer(cut_after=max(0, place - start))

        stream_server.behave = behave
        with (
            pytest.raises(OSError, match="tried 5 times") as caught,
            RemoteFile(stream_server.address) as file,
        ):
            decoded(file)
        assert caught.value.filename == stream_server.address


def test_server_that_says_less_than_there_is(stream_server: FileServer) -> None:
    stream_server.has_ranges = False
    stream_server.behave = lambda number, request: Answer(
        headers={"Content-Length": str(len(STREAM) - 10)}
    )
    with (
        pytest.raises(TruncatedBitstream, match=r"only .* bytes left"),
        RemoteFile(stream_server.address) as file,
    ):
        decoded(file)
