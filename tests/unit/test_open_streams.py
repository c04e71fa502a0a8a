"""Open streams: what they keep of a file, and until when."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import nnr_codec
from nnr_codec.bitstream import DataUnit

needs_maps = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    path = tmp_path / "model.nnr"
    rng = np.random.default_rng(0)
    arrays = {"raw": np.ldexp(rng.normal(size=9), range(9)), "w": rng.normal(size=(30, 40))}
    options = nnr_codec.EncodeOptions(exclude=("raw",))
    nnr_codec.encode({n: a.astype(np.float32) for n, a in arrays.items()}, path, options)
    return path


@needs_maps
@pytest.mark.parametrize("kept", ["nothing", "units", "payloads", "arrays", "tensors", "names"])
def test_nothing_maps_a_file_after_close(stream: Path, kept: str) -> None:
    opened = nnr_codec.open(stream)
    assert is_mapped(stream)
    units = opened.units()
    held = {
        "nothing": lambda: None,
        "units": opened.units,
        "payloads": lambda: [parsed.payload[1:] for parsed in units],
        "arrays": lambda: [np.frombuffer(parsed.unit.data, np.uint8) for parsed in units],
        "tensors": lambda: dict(opened),
        "names": lambda: iter(opened),
    }[kept]()
    opened.close()
    assert not is_mapped(stream)
    del held
    opened.close()


@needs_maps
def test_errors_keep_no_mapping(stream: Path) -> None:
    data = bytearray(stream.read_bytes())
    data[-1] ^= 0x81
    stream.write_bytes(data)
    with nnr_codec.open(stream) as opened, pytest.raises(nnr_codec.InvalidBitstream) as caught:
        dict(opened)
    assert caught.value.__traceback__ is not None
    assert not is_mapped(stream)


def test_units_outlive_the_stream(stream: Path) -> None:
    with nnr_codec.open(stream) as opened:
        units = opened.units()
    whole = b"".join(bytes(parsed.unit.data) for parsed in units)
    assert whole == stream.read_bytes()
    for parsed in units:
        start = parsed.payload_offset
        assert parsed.payload == whole[start : start + len(parsed.payload)]
        assert parsed.elements()
    assert any(isinstance(parsed.record, DataUnit) for parsed in units)


def test_a_pipe_is_read_unit_by_unit(stream: Path, tmp_path: Path) -> None:
    """And no further than the limits allow."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for limits in (nnr_codec.DecodeLimits(), nnr_codec.DecodeLimits(max_units=3)):
        feeder = threading.Thread(target=pipe.write_bytes, args=(stream.read_bytes(),))
        feeder.start()
        if limits.max_units > 3:
            with nnr_codec.open(pipe, limits=limits) as opened:
                assert list(opened) == ["raw", "w"]
                assert opened["w"].shape == (30, 40)
        else:
            with pytest.raises(nnr_codec.LimitExceeded, match="max_units"):
                nnr_codec.open(pipe, limits=limits)
        feeder.join()
