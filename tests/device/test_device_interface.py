"""nnr.h, called from Python: usage, limits, cancellation, memory; and the example of the README."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_support import (
    DEVICE,
    END,
    FUNCTION,
    LIMIT,
    MEMORY,
    HostBuild,
    Request,
    ask,
    link_program,
    run,
)

import nnr_codec

OK, NEED_INPUT, USAGE, CANCELLED = 0, 2, 3, 11
FLOAT16, BFLOAT16, FLOAT32, FLOAT64, INTEGERS = 9, 10, 11, 12, 18
VERSION = 2

ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
CANCELLED_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
LIMIT_NAMES = [
    *("elements_per_tensor", "elements", "units", "stream_bytes", "unit_bytes", "name_bytes"),
    *("dimensions", "product_operations", "all_product_operations", "header_entries"),
    "topology_bytes",
]


class Limits(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in LIMIT_NAMES]


class Options(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32),
        ("layers", ctypes.c_int),
        ("memory_context", ctypes.c_void_p),
        ("allocate", ALLOCATE),
        ("release", RELEASE),
        ("limits", Limits),
        ("series", ctypes.c_void_p),
        ("keep", ctypes.c_int),
        ("is_parent", ctypes.c_int),
        ("is_cancelled", CANCELLED_FUNCTION),
        ("cancel_context", ctypes.c_void_p),
    ]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("role", ctypes.c_int),
        ("type", ctypes.c_int),
        ("dimension_count", ctypes.c_uint32),
        ("dimensions", ctypes.POINTER(ctypes.c_uint64)),
        ("elements", ctypes.c_uint64),
        ("step", ctypes.c_float),
        ("row_elements", ctypes.c_uint64),
        ("tied_to", ctypes.c_char_p),
        ("change", ctypes.c_int),
    ]


class Interface:
    """The library, and memory for what it opens."""

    def __init__(self, library: Path) -> None:
        self.lib = ctypes.CDLL(str(library))
        self.lib.nnr_open_memory.restype = self.lib.nnr_open_feed.restype = ctypes.c_void_p
        self.lib.nnr_decoder_size.restype = self.lib.nnr_feed.restype = ctypes.c_size_t
        self.libc = ctypes.CDLL(None)
        self.libc.malloc.restype = ctypes.c_void_p
        self._kept: list[Any] = []

    def options(self) -> Options:
        options = Options()
        self.lib.nnr_default_options(ctypes.byref(options))
        malloc = ALLOCATE(lambda _, size: self.libc.malloc(ctypes.c_size_t(size)))
        free = RELEASE(lambda _, memory, size: self.libc.free(ctypes.c_void_p(memory)))
        options.allocate, options.release = malloc, free
        self._kept += [options, malloc, free]
        return options

    def open(self, data: bytes, options: Options | None = None) -> ctypes.c_void_p:
        place = ctypes.create_string_buffer(self.lib.nnr_decoder_size() + 16)
        aligned = (ctypes.addressof(place) + 15) // 16 * 16
        self._kept += [place, data]
        chosen = ctypes.byref(options or self.options())
        size = ctypes.c_size_t(len(data))
        opened = self.lib.nnr_open_memory(ctypes.c_void_p(aligned), chosen, data, size)
        return ctypes.c_void_p(opened)

    def next(self, decoder: ctypes.c_void_p, tensor: Tensor | None = None) -> int:
        return int(self.lib.nnr_next_tensor(decoder, ctypes.byref(tensor or Tensor())))

    def read(self, decoder: ctypes.c_void_p, kind: int, array: np.ndarray) -> int:
        pointer = array.ctypes.data_as(ctypes.c_void_p)
        return int(self.lib.nnr_read(decoder, kind, pointer, ctypes.c_uint64(array.size)))


@pytest.fixture
def interface(host: HostBuild) -> Interface:
    return Interface(host.library)


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (40, 30)).astype(np.float32)


@pytest.fixture(scope="module")
def stream(weights: np.ndarray) -> bytes:
    options = nnr_codec.EncodeOptions(qp=-12)
    return bytes(nnr_codec.encode({"w": weights, "v": weights[0]}, options=options).data)


def test_types_and_rows(interface: Interface, stream: bytes) -> None:
    """float16 and bfloat16 are rounded; integers times the step are the elements."""
    wanted = nnr_codec.decode(stream)["w"]
    decoder, tensor = interface.open(stream), Tensor()
    assert interface.next(decoder, tensor) == OK
    assert (tensor.name, tensor.dimension_count, tensor.elements) == (b"w", 2, 1200)
    assert tensor.row_elements == 30
    floats, integers = np.empty(30, np.float32), np.empty(30, np.int32)
    halves, brains = np.empty(30, np.float16), np.empty(30, np.uint16)
    assert interface.read(decoder, FLOAT32, floats) == OK
    assert interface.read(decoder, FLOAT16, halves) == OK
    assert interface.read(decoder, BFLOAT16, brains) == OK
    assert interface.read(decoder, INTEGERS, integers) == OK
    assert np.array_equal(floats, wanted[0])
    assert np.array_equal(halves, wanted[1].astype(np.float16))
    bits = wanted[2].view(np.uint32).astype(np.uint64)
    assert np.array_equal(brains, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    assert np.array_equal(integers.astype(np.float32) * np.float32(tensor.step), wanted[3])
    interface.lib.nnr_close(decoder)


def test_usage(interface: Interface, stream: bytes) -> None:
    decoder, tensor, row = interface.open(stream), Tensor(), np.empty(1200, np.float32)
    assert interface.read(decoder, FLOAT32, row) == USAGE  # no tensor yet
    assert interface.next(decoder, tensor) == OK
    assert interface.read(decoder, FLOAT64, np.empty(4)) == USAGE  # no type of it
    assert interface.read(decoder, FLOAT32, np.empty(1201, np.float32)) == USAGE
    assert interface.read(decoder, FLOAT32, row) == OK  # none of which did any harm
    assert np.array_equal(row.reshape(40, 30), nnr_codec.decode(stream)["w"])
    assert interface.read(decoder, FLOAT32, row[:1]) == USAGE
    assert [interface.next(decoder) for _ in range(3)] == [OK, END, END]
    interface.lib.nnr_close(decoder)
    options = interface.options()
    options.version = VERSION + 1
    assert not interface.open(stream, options).value


@pytest.mark.parametrize(
    ("limit", "least"),
    [("elements_per_tensor", 1200), ("elements", 1230), ("units", 5), ("name_bytes", 1)],
)
def test_limits(interface: Interface, stream: bytes, limit: str, least: int) -> None:
    for value, expected in ((least, END), (least - 1, LIMIT)):
        options = interface.options()
        setattr(options.limits, limit, value)
        decoder = interface.open(stream, options)
        status = OK
        while status == OK:
            status = interface.next(decoder)
        assert status == expected
        interface.lib.nnr_close(decoder)


def test_cancellation(interface: Interface, stream: bytes) -> None:
    options = interface.options()
    asked: list[int] = []

    def question(_: object) -> int:
        asked.append(1)
        return int(len(asked) > 3)

    options.is_cancelled = CANCELLED_FUNCTION(question)
    decoder = interface.open(stream, options)
    statuses = [interface.next(decoder) for _ in range(4)]
    assert statuses[0] == OK
    assert statuses[-1] == CANCELLED
    interface.lib.nnr_close(decoder)


def test_feeding_nothing_needs_input(interface: Interface, stream: bytes) -> None:
    place = ctypes.create_string_buffer(interface.lib.nnr_decoder_size() + 16)
    aligned = ctypes.c_void_p((ctypes.addressof(place) + 15) // 16 * 16)
    options = ctypes.byref(interface.options())
    decoder = ctypes.c_void_p(interface.lib.nnr_open_feed(aligned, options))
    assert interface.next(decoder) == NEED_INPUT
    assert interface.lib.nnr_feed(decoder, stream, ctypes.c_size_t(len(stream))) == 2
    assert interface.next(decoder) == NEED_INPUT
    interface.lib.nnr_close(decoder)


@pytest.mark.parametrize("shape", [(50, 40), (500, 400)])
def test_memory_does_not_follow_the_tensor(host: HostBuild, shape: tuple[int, int]) -> None:
    """Contexts for N = 10 or less, names, and what the tools need: the formula of the README."""
    rng = np.random.default_rng(0)
    weights = np.rint(rng.normal(0, 2, shape)).astype(np.float32)
    contexts, names, buckets = 17 * (90 + 4 * 10) + 32, 1024, 16 * 8
    for profile, scan_order in ((0, 0), (1, 0), (0, 1)):
        options = nnr_codec.EncodeOptions(qp=0, profile=profile, scan_order=scan_order)
        data = bytes(nnr_codec.encode({"w": weights}, options=options).data)
        tools = (profile * shape[0] + 7) // 8 + bool(scan_order) * 4 * 8 * shape[1]
        in_memory, by_function = ask(
            [host.harness], [Request(data, (), MEMORY), Request(data, (), FUNCTION)]
        )
        formula = contexts + names + buckets + tools
        assert formula - 700 < in_memory.peak <= formula
        assert by_function.peak <= formula + 2 * len(data)


def test_a_series_takes_five_bytes_an_element(host: HostBuild) -> None:
    values = np.random.default_rng(0).normal(0, 1, (60, 50)).astype(np.float32)
    options = nnr_codec.EncodeOptions(qp=-4, profile=1)
    first = bytes(nnr_codec.encode({"w": values}, options=options).data)
    second = bytes(nnr_codec.encode({"w": values}, options=options, parents=[first]).data)
    third = nnr_codec.encode({"w": values}, options=options, parents=[first, second]).data
    (answer,) = ask([host.harness], [Request(bytes(third), (first, second))])
    assert answer.status == END
    assert answer.series_peak == 5 * values.size + 1024 + 16 * 8  # and its names


def test_the_example_of_the_readme(host: HostBuild, tmp_path: Path, stream: bytes) -> None:
    text = (DEVICE / "README.md").read_text()
    (code,) = re.findall(r"```c\n(.*?)```", text, re.DOTALL)
    source = tmp_path / "example.c"
    source.write_text(code)
    program = link_program(tmp_path / "example", [host.c], [source], host.objects)
    (tmp_path / "in.nnr").write_bytes(stream)
    done = run(program, tmp_path / "in.nnr", text=True)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split(", sum")[0] for line in lines] == ["w: 1200 elements", "v: 30 elements"]
    (tmp_path / "in.nnr").write_bytes(stream[:-1])
    assert run(program, tmp_path / "in.nnr", text=True).returncode == 3
