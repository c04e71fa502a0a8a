"""The core compiled with sanitizers and run on random input; the decoding side compiled alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "nnr_codec" / "_core"
HARNESS = Path(__file__).with_name("sanitize.cpp")
COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
DEVICE = ("-std=c++17", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra", "-Werror")


def run(*command: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def compiler() -> str:
    if not COMPILER:
        pytest.skip("no C++ compiler")
    return COMPILER


@pytest.fixture(scope="module")
def harness(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness, compiled once; skips where the sanitizers do not work."""
    folder = tmp_path_factory.mktemp("sanitize")
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    if (
        run(compiler, *SANITIZERS, probe, "-o", folder / "probe").returncode
        or run(folder / "probe").returncode
    ):
        pytest.skip(f"{compiler} has no address and undefined behaviour sanitizers")
    program = folder / "sanitize"
    warnings = ("-Wall", "-Wextra", "-Werror")
    done = run(
        compiler,
        "-std=c++20",
        "-O1",
        "-g",
        *warnings,
        *SANITIZERS,
        f"-I{CORE}",
        HARNESS,
        "-o",
        program,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return program


@pytest.mark.sanitizer
@pytest.mark.parametrize("seed", [1, 2])
def test_random_input(harness: Path, seed: int) -> None:
    """1500 rounds: 12 000 random payloads, 1500 round trips with 6000 damaged codewords."""
    done = run(harness, "1500", str(seed))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "1500 rounds\n"


@pytest.mark.sanitizer
def test_the_harness_sees_an_overrun(harness: Path, compiler: str, tmp_path: Path) -> None:
    """A decoder that reads past the buffer is caught: the harness can fail."""
    source = tmp_path / "overrun.cpp"
    source.write_text(
        HARNESS.read_text().replace(
            "nnr::decode_codeword(payload.data, payload.size,",
            "nnr::decode_codeword(payload.data, payload.size + 1,",
        )
    )
    program = tmp_path / "overrun"
    done = run(compiler, "-std=c++20", "-O1", *SANITIZERS, f"-I{CORE}", source, "-o", program)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "heap-buffer-overflow" in run(program, "100", "1").stderr


ALONE = """
#include "decode/codeword.h"
#include "decode/dequantize.h"

// What a device needs: all symbols used, so that all templates are compiled.
nnr::DecodeStatus decode(const unsigned char* data, std::size_t size, nnr::CodedTensor* tensors,
                         std::size_t count, float step, float* weights) {
  const auto status = nnr::decode_codeword(data, size, tensors, count, 8, {nullptr, 0});
  nnr::dequantize(tensors->integers, tensors->syntax.elements(), step, weights);
  return status;
}
"""


def test_the_decoding_side_compiles_alone(compiler: str, tmp_path: Path) -> None:
    """C++17 without exceptions and run-time types, nothing of the encoding side, no allocation."""
    source, made = tmp_path / "device.cpp", tmp_path / "device.o"
    source.write_text(ALONE)
    shutil.copytree(CORE / "decode", tmp_path / "decode")  # where the encoding side is out of reach
    done = run(compiler, *DEVICE, "-O2", f"-I{tmp_path}", "-c", source, "-o", made)
    assert done.returncode == 0, done.stderr[-4000:]
    if shutil.which("nm"):
        undefined = run("nm", "-C", "--undefined-only", made).stdout
        for allocation in ("operator new", "malloc", "calloc"):
            assert allocation not in undefined, undefined


@pytest.mark.parametrize("header", sorted(path.name for path in (CORE / "decode").glob("*.h")))
def test_each_header_compiles_alone(compiler: str, header: str, tmp_path: Path) -> None:
    source = tmp_path / "one.cpp"
    source.write_text(f'#include "decode/{header}"\n')
    done = run(compiler, *DEVICE, "-fsyntax-only", f"-I{CORE}", source)
    assert done.returncode == 0, done.stderr[-4000:]
