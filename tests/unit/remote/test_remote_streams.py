"""Bitstreams at addresses: what of them is fetched, and that nothing wrong comes out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from remote_support import Answer, FileServer, serving

import nnr_codec
from nnr_codec import EncodeOptions

LAYERS = 40


def model() -> dict[str, Any]:
    rng = np.random.default_rng(2)
    shapes = {"weight": (192, 192), "bias": (192,)}
    names = [(f"layer.{n}.{kind}", kind) for n in range(LAYERS) for kind in shapes]
    return {name: rng.standard_normal(shapes[kind]).astype(np.float32) for name, kind in names}


PLAIN = nnr_codec.encode(model()).data or b""
INDEXED = nnr_codec.encode(model(), options=EncodeOptions(index=True)).data or b""
TENSORS = nnr_codec.decode(PLAIN)


@pytest.fixture(params=[INDEXED, PLAIN], ids=["indexed", "plain"])
def stream_server(request: Any) -> Iterator[FileServer]:
    with serving(request.param) as running:
        yield running


@pytest.fixture
def indexed() -> Iterator[FileServer]:
    with serving(INDEXED) as running:
        yield running


def check(tensors: Any) -> None:
    assert list(tensors) == list(TENSORS)
    for name, values in tensors.items():
        assert np.array_equal(values, TENSORS[name])


class TestWhole:
    def test_in_two_requests_and_no_byte_twice(self, stream_server: FileServer) -> None:
        check(nnr_codec.decode(stream_server.address))
        assert len(stream_server.requests) == 2
        assert stream_server.sent == len(stream_server.data)

    def test_with_threads(self, stream_server: FileServer) -> None:
        with ThreadPoolExecutor(4) as executor:
            check(nnr_codec.decode(stream_server.address, executor=executor))
        assert stream_server.sent == len(stream_server.data)

    def test_without_ranges(self, stream_server: FileServer) -> None:
        stream_server.has_ranges = False
        check(nnr_codec.decode(stream_server.address))
        check(dict(nnr_codec.open(stream_server.address)))

    def test_tensors_come_before_the_last_byte(self, stream_server: FileServer) -> None:
        go_on = threading.Event()
        half = len(stream_server.data) // 2
        stream_server.behave = lambda number, request: Answer(wait_after=half, go_on=go_on)
        tensors = nnr_codec.stream_tensors(stream_server.address)
        early = [next(tensors)[0] for _ in range(LAYERS // 2)]
        assert early == list(TENSORS)[: len(early)]
        go_on.set()
        assert len(early) + sum(1 for _ in tensors) == len(TENSORS)


class TestParts:
    def test_one_tensor_takes_its_unit_and_little_more(self, indexed: FileServer) -> None:
        unit = len(INDEXED) / LAYERS
        only = nnr_codec.decode(indexed.address, only="layer.30.weight")
        assert np.array_equal(only["layer.30.weight"], TENSORS["layer.30.weight"])
        assert len(indexed.requests) == 2
        assert indexed.sent < unit + 65536

    def test_neighbours_come_together(self, indexed: FileServer) -> None:
        assert len(nnr_codec.decode(indexed.address, only="layer.1?.*")) == 20
        assert len(indexed.requests) == 2
        assert indexed.sent < 10 * len(INDEXED) / LAYERS + 65536

    def test_an_open_stream_fetches_what_is_read(self, indexed: FileServer) -> None:
        with nnr_codec.open(indexed.address) as stream:
            assert list(stream) == list(TENSORS)
            assert len(indexed.requests) == 1
            assert np.array_equal(stream["layer.20.bias"], TENSORS["layer.20.bias"])
            assert len(indexed.requests) == 2
            check(dict(stream))
        assert indexed.sent <= len(INDEXED)

    def test_of_a_stream_without_a_table_headers_are_walked(self) -> None:
        with serving(PLAIN) as server:
            only = nnr_codec.decode(server.address, only="layer.30.weight")
            assert np.array_equal(only["layer.30.weight"], TENSORS["layer.30.weight"])
            assert server.sent < len(PLAIN) // 2

    def test_a_description_needs_headers_alone(self, stream_server: FileServer) -> None:
        with nnr_codec.open(stream_server.address) as remote:
            assert remote.info() == nnr_codec.open(stream_server.data).info()
        assert stream_server.sent < len(stream_server.data) // 2


class TestCache:
    def test_what_has_come_is_not_fetched_again(self, indexed: FileServer, tmp_path: Path) -> None:
        address = indexed.address
        nnr_codec.decode(address, only="layer.1?.*", cache=tmp_path)
        before = indexed.sent
        nnr_codec.decode(address, only="layer.1?.*", cache=tmp_path)
        assert indexed.sent <= before + 16384  # new ones, as the server is asked for its version
        check(nnr_codec.decode(address, cache=tmp_path))
        assert indexed.sent == len(INDEXED)
        check(dict(nnr_codec.open(address, cache=tmp_path)))
        check(dict(nnr_codec.stream_tensors(address, cache=tmp_path)))
        assert indexed.sent == len(INDEXED)

    def test_a_new_version_is_fetched(self, indexed: FileServer, tmp_path: Path) -> None:
        address = indexed.address
        nnr_codec.decode(address, cache=tmp_path)
        indexed.replace(PLAIN)
        check(nnr_codec.decode(address, cache=tmp_path))

    def test_what_is_damaged_is_not_kept(self, tmp_path: Path) -> None:
        """By the server, which has another file of the same tag later; or on the disk."""
        damaged = bytearray(INDEXED)
        damaged[-9] ^= 1
        with serving(bytes(damaged)) as server:
            with pytest.raises(nnr_codec.InvalidBitstream):
                nnr_codec.decode(server.address, cache=tmp_path)
            server.data = INDEXED
            check(nnr_codec.decode(server.address, cache=tmp_path))
            (kept,) = (path for path in tmp_path.iterdir() if path.suffix != ".journal")
            kept.write_bytes(bytes(damaged))
            with (
                nnr_codec.open(server.address, cache=tmp_path) as stream,
                pytest.raises(nnr_codec.InvalidBitstream),
            ):
                dict(stream)
            check(nnr_codec.decode(server.address, cache=tmp_path))


class TestFaults:
    def test_every_flipped_unit_is_noticed(self) -> None:
        units = nnr_codec.open(INDEXED).units()
        assert len(units) == LAYERS + 3
        for parsed in units:
            data = bytearray(INDEXED)
            data[parsed.unit.byte_offset + parsed.unit.size // 2] ^= 16
            with serving(bytes(data)) as server, pytest.raises(nnr_codec.BitstreamError) as error:
                nnr_codec.decode(server.address)
            assert server.address in str(error.value)

    @pytest.mark.parametrize("percent", range(0, 100, 7))
    def test_a_connection_that_is_cut(self, stream_server: FileServer, percent: int) -> None:
        def behave(number: int, request: Any) -> Answer:
            cut = len(stream_server.data) * percent // 100
            return Answer(cut_after=cut if number == 1 else None)

        stream_server.behave = behave
        check(nnr_codec.decode(stream_server.address))

    def test_a_file_that_is_replaced(self, indexed: FileServer) -> None:
        with nnr_codec.open(indexed.address) as stream:
            indexed.replace(bytes(reversed(INDEXED)))
            with pytest.raises(OSError, match="changed"):
                stream["layer.20.weight"]

    def test_no_such_file(self, indexed: FileServer) -> None:
        indexed.behave = lambda number, request: Answer(status=404)
        with pytest.raises(FileNotFoundError, match="404"):
            nnr_codec.decode(indexed.address)

    def test_a_part_of_a_stream(self) -> None:
        with serving(INDEXED[: len(INDEXED) // 2]) as server:
            for read in (nnr_codec.decode, lambda address: dict(nnr_codec.open(address))):
                with pytest.raises(nnr_codec.TruncatedBitstream):
                    read(server.address)


class TestLoading:
    def test_into_a_module_as_it_arrives(self, stream_server: FileServer, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch", reason="needs the extra torch")
        from nnr_codec.layers import load_into

        layers = {str(number): torch.nn.Linear(192, 192) for number in range(LAYERS)}
        module = torch.nn.ModuleDict({"layer": torch.nn.ModuleDict(layers)})
        load_into(module, stream_server.address, cache=tmp_path)
        check({name: module.get_parameter(name).detach().numpy() for name in TENSORS})
        assert stream_server.sent == len(stream_server.data)
        load_into(module, stream_server.address, cache=tmp_path)
        assert stream_server.sent == len(stream_server.data)
