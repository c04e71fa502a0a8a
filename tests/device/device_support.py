"""Building the device decoder for a target, and asking it what streams decode to."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from small_streams import SmallStream

import nnr_codec
from nnr_codec import DecodeLimits

ROOT = Path(__file__).parents[2]
DEVICE = ROOT / "nnr_codec" / "_core" / "device"
CORPUS = ROOT / "conformance" / "corpus"
SOURCES = [DEVICE / "nnr.cpp", *sorted(DEVICE.glob("*/*.cpp"))]
NNRDEC = sorted(DEVICE.glob("nnrdec/*.c"))
HARNESS = Path(__file__).with_name("harness.c")

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
LIBRARY = ("-std=c++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics",
           "-ffp-contract=off", "-DNNR_PLAIN_PATHS_ALONE")  # fmt: skip
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

LIMITS = DecodeLimits(
    max_elements_per_tensor=1 << 22,
    max_elements=1 << 22,
    max_product_operations=1 << 26,
    max_all_product_operations=1 << 27,
)
"""Those of the harness."""

MEMORY, FUNCTION, FED = 0, 1, 2
FACTORIZED, FAIL_ALLOCATIONS, NOTHING_READ, ODD_PIECES, AS_INTEGERS = 4, 8, 16, 32, 64
BASE, LAYERS = 128, 256
"""Options of the harness."""

END, INVALID, TRUNCATED, UNSUPPORTED, LIMIT, MISSING_PARENT, NO_MEMORY = 1, 4, 5, 6, 7, 8, 9
"""Statuses of nnr.h."""


class Request(NamedTuple):
    """A stream, those before it in its series, and options of the harness."""

    stream: bytes
    parents: tuple[bytes, ...] = ()
    options: int = 0


@dataclass(frozen=True)
class Answer:
    """What the harness says of a stream: `total` and `count` are those of the tensors,
    the peaks bytes of memory."""

    status: int
    total: int
    count: int
    peak: int
    series_peak: int
    allocations: int
    text: str


@dataclass(frozen=True)
class HostBuild:
    """The library for this machine: object files, what was linked with them, the C compiler."""

    folder: Path
    c: str
    objects: list[Path]
    harness: Path
    command: Path
    library: Path


def run(*command: str | Path, **more: Any) -> subprocess.CompletedProcess[Any]:
    options: dict[str, Any] = {"capture_output": True, "timeout": 300, "check": False} | more
    return subprocess.run(list(map(str, command)), **options)


def compile_objects(folder: Path, compiler: Sequence[str], *flags: str) -> list[Path]:
    """Compile the library, two files at a time; returns the object files."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = [folder / f"{source.parent.name}_{source.stem}.o" for source in SOURCES]
    commands = [
        [*compiler, *LIBRARY, *WARNINGS, *flags, "-c", str(source), "-o", str(made)]
        for source, made in zip(SOURCES, objects, strict=True)
    ]
    waiting = commands[::-1]
    running: list[subprocess.Popen[str]] = []
    while waiting or running:
        while waiting and len(running) < 2:
            running.append(subprocess.Popen(waiting.pop(), stderr=subprocess.PIPE, text=True))
        process = running.pop(0)
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-4000:]
    return objects


def link_program(
    program: Path, c: Sequence[str], sources: Sequence[Path], objects: Sequence[Path], *flags: str
) -> Path:
    """Compile a C program that uses the library; it is linked without the C++ library."""
    language = ("-std=c99", "-pedantic", "-D_POSIX_C_SOURCE=200809L", f"-I{DEVICE}")
    done = run(*c, *language, *WARNINGS, *sources, *objects, "-o", program, *flags, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return program


def read_folder(folder: Path) -> dict[str, Any]:
    """Return the tensors that nnrdec wrote."""
    listed = json.loads((folder / "tensors.json").read_text())
    return {
        entry["name"]: np.fromfile(folder / entry["file"], np.dtype(entry["dtype"])).reshape(
            entry["shape"]
        )
        for entry in listed
    }


def ask(program: Sequence[str | Path], requests: Iterable[Request]) -> list[Answer]:
    """Let the harness decode streams."""
    data = bytearray()
    for request in requests:
        streams = [*request.parents, request.stream]
        data += struct.pack("<II", request.options, len(streams))
        for stream in streams:
            data += struct.pack("<I", len(stream)) + stream
    done = run(*program, input=bytes(data))
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    answers = []
    for line in done.stdout.decode().splitlines():
        *numbers, text = line.split(" ", 6)
        answers.append(Answer(*map(int, numbers), text))  # type: ignore[arg-type]
    return answers


def expected_total(tensors: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the sum that the harness makes of tensors."""
    total = 0
    for name, tensor in tensors.items():
        text = tensor.dtype.name + "".join(f",{size}" for size in tensor.shape)
        elements = np.ascontiguousarray(tensor).reshape(-1)
        if tensor.dtype.name in ("float16", "bfloat16", "float32", "float64"):
            is_nan = np.isnan(elements)
            if is_nan.any():  # which NaN it is, is open
                elements = np.where(is_nan, elements.dtype.type(np.nan), elements)
        described = zlib.crc32(elements.tobytes(), zlib.crc32(text.encode()))
        total += (zlib.crc32(name.encode()) * 2654435761 & 0xFFFFFFFF) ^ described
    return total & 0xFFFFFFFF


def tool(*names: str) -> str | None:
    """The first of these programs that there is."""
    return next(filter(None, map(shutil.which, names)), None)


def host_compilers() -> tuple[str, str] | None:
    """The C and C++ compiler of this machine."""
    c = os.environ.get("CC") or tool("cc", "gcc", "clang")
    cxx = os.environ.get("CXX") or tool("c++", "g++", "clang++")
    return (c, cxx) if c and cxx else None


def expected(request: Request) -> tuple[int, int] | None:
    """What nnr_codec decodes a request to, as the harness has it; None: it is refused."""
    layers = "factorized" if request.options & FACTORIZED else "dense"
    earlier = {"base" if request.options & BASE else "parents": request.parents}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nnr_codec.NnrWarning)  # of files that are cut
            tensors = nnr_codec.decode(request.stream, layers=layers, limits=LIMITS, **earlier)
    except (nnr_codec.BitstreamError, nnr_codec.InvalidOptions):
        return None
    return expected_total(tensors), len(tensors)


def differences(program: Sequence[str | Path], requests: Sequence[Request]) -> list[str]:
    """Return a sentence for each stream of which the harness says something else."""
    found = []
    for number, (request, answer) in enumerate(zip(requests, ask(program, requests), strict=True)):
        want = expected(request)
        got = (answer.total, answer.count) if answer.status == END else None
        is_refused = answer.status >= INVALID and answer.status != NO_MEMORY
        if got != want or (got is None and not is_refused):
            found.append(f"request {number}, options {request.options}: {answer}, not {want}")
    return found


def corpus_requests(options: int, largest: int = 30_000) -> list[Request]:
    """The cases of the conformance corpus, but the largest ones, and files of several streams."""
    requests = []
    for path in sorted(CORPUS.glob("*/*/case.json")):
        case = json.loads(path.read_text())
        files = [*case.get("parents", []), "stream.nnr"]
        *parents, stream = [(path.parent / file).read_bytes() for file in files]
        if len(stream) <= largest and not case["section"].startswith("Quality layers"):
            requests.append(Request(stream, tuple(parents), options))
    return requests


def damaged(stream: SmallStream, every: int = 1) -> list[Request]:
    """A stream cut at every byte, and with every bit flipped, or every n-th of these."""
    data, parents = stream.data, stream.parents
    requests = [Request(data[:size], parents, size % 3) for size in range(0, len(data), every)]
    for bit in range(0, 8 * len(data), every):
        layers = FACTORIZED if bit % 2 else 0
        requests.append(Request(_flipped(data, bit), parents, bit % 3 | layers))
    for parent in parents:
        for bit in range(0, 8 * len(parent), every):
            requests.append(Request(data, (_flipped(parent, bit),), bit % 3))
    return requests


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 128 >> bit % 8
    return bytes(changed)
