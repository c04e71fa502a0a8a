"""The device decoder on other machines, by emulation, and what it takes on a small one."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from device_support import (
    DEVICE,
    FACTORIZED,
    FED,
    FUNCTION,
    HARNESS,
    MEMORY,
    ODD_PIECES,
    Request,
    compile_objects,
    corpus_requests,
    differences,
    link_program,
    run,
    tool,
)
from small_streams import small_streams
from update_streams import update_requests

pytestmark = pytest.mark.sanitizer  # these compile: not for every run

WAYS = (MEMORY, FUNCTION | FACTORIZED, FED | ODD_PIECES)
RUN_WASM = Path(__file__).with_name("run_wasm.mjs")
SMALL_PARTS = ("MAP", "DC", "UPDATES", "TEXTS")
LEAST = tuple(f"-DNNR_WITH_{part}=0" for part in SMALL_PARTS)
VARIANTS = [
    ("-DNNR_WITH_MAP=0",),
    ("-DNNR_WITH_UPDATES=0",),
    ("-DNNR_WITH_MAP=0", "-DNNR_WITH_DC=0"),
    ("-DNNR_WITH_MAP=0", "-DNNR_WITH_FLOATS=0"),
    (*LEAST, "-DNNR_WITH_FLOATS=0", "-DNNR_SMALL_TABLES"),
]


class Target(NamedTuple):
    """How to compile for a machine, and what runs the program."""

    c: tuple[str, ...]
    cxx: tuple[str, ...]
    runner: tuple[str, ...]
    link: tuple[str, ...] = ("-static",)


def linux(machine: str, emulator: str) -> Target:
    return Target((f"{machine}-gcc",), (f"{machine}-g++",), (emulator,))


WASM = "--target=wasm32-wasi"
NODE = ("node", "--no-warnings", str(RUN_WASM))
TARGETS = {
    "clang": Target(("clang",), ("clang++",), (), ()),
    "aarch64": linux("aarch64-linux-gnu", "qemu-aarch64"),
    "armv7": linux("arm-linux-gnueabihf", "qemu-arm"),
    "big-endian s390x": linux("s390x-linux-gnu", "qemu-s390x"),
    "wasm": Target(
        ("clang", WASM), ("clang++", WASM), ("node", "--no-warnings", str(RUN_WASM)), ()
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_same_bits_everywhere(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for program in (target.c[0], target.cxx[0], *target.runner[:1]):
        if tool(program) is None:
            pytest.skip(f"no {program}")
    probe = tmp_path / "probe.c"
    probe.write_text("#include <stdlib.h>\nint main(void) { return 0; }\n")
    if run(*target.c, probe, "-o", tmp_path / "probe", *target.link).returncode:
        pytest.skip(f"{target.c} has no C library for this target")
    objects = compile_objects(tmp_path, target.cxx, "-O2")
    harness = link_program(tmp_path / "harness", target.c, [HARNESS], objects, *target.link)
    streams = small_streams().values()
    for way in WAYS:
        requests = corpus_requests(way) + [Request(s.data, s.parents, way) for s in streams]
        requests += update_requests(way & ~FACTORIZED)
        assert differences([*target.runner, harness], requests) == []


@pytest.mark.parametrize("flags", VARIANTS)
def test_builds_that_leave_something_out(flags: tuple[str, ...], tmp_path: Path) -> None:
    cxx = tool("g++", "clang++")
    if cxx is None:
        pytest.skip("no C++ compiler")
    compile_objects(tmp_path, [cxx], "-O0", *flags)


def test_small_tables_change_nothing(tmp_path: Path) -> None:
    cxx, c = tool("g++", "clang++"), tool("gcc", "clang")
    if cxx is None or c is None:
        pytest.skip("no compiler")
    objects = compile_objects(tmp_path, [cxx], "-Os", "-DNNR_SMALL_TABLES")
    harness = link_program(tmp_path / "harness", [c], [HARNESS], objects)
    assert differences([harness], corpus_requests(MEMORY)) == []


MACHINE = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
SECTIONS = ("-Os", "-ffunction-sections", "-fdata-sections")
MAIN = """
#include "nnr.h"
void* volatile place; const void* volatile data; volatile size_t size;
void _exit(int code) { (void)code; for (;;) {} }
int main(void) {
  nnr_options options; nnr_tensor tensor; float row[16]; const uint64_t* sizes; nnr_weight weight;
  nnr_default_options(&options);
  nnr_decoder* decoder = nnr_open_memory(place, &options, data, size);
  nnr_series* series = nnr_series_open(place, &options.memory);
  nnr_open_reader(place, &options, 0, 0);
  nnr_open_feed(place, &options);
  nnr_feed(decoder, data, size);
  nnr_feed_end(decoder);
  do {
    while (nnr_next_tensor(decoder, &tensor) == NNR_OK)
      if (tensor.change == NNR_VALUES) nnr_read(decoder, tensor.type, row, 16);
      else nnr_add(decoder, tensor.type, row, 16);
  } while (nnr_next_layer(decoder) == NNR_OK && nnr_quality_layers(decoder, &sizes) > 1);
  nnr_series_close(series);
  nnr_close(decoder);
  nnr_factored_weight(decoder, 0, &weight);
  return nnr_is_update(decoder) + (int)nnr_last_error(decoder)->status +
         nnr_type_name(tensor.type)[0];
}
"""


@pytest.fixture(scope="module")
def cortex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if tool("arm-none-eabi-g++") is None:
        pytest.skip("no arm-none-eabi-g++")
    return tmp_path_factory.mktemp("cortex")


@pytest.mark.parametrize(
    ("name", "flags", "most"),
    [
        ("all", (), 64 << 10),
        ("least", (*LEAST, "-DNNR_SMALL_TABLES"), 24 << 10),
    ],
)
def test_size_on_a_cortex_m4(cortex: Path, name: str, flags: tuple[str, ...], most: int) -> None:
    """Code and constants, with what they need of the C library, and no variables."""
    folder = cortex / name
    objects = compile_objects(folder, ["arm-none-eabi-g++"], *MACHINE, *SECTIONS, *flags)
    sizes = run("arm-none-eabi-size", "-t", *objects, text=True).stdout.splitlines()
    assert sizes[-1].split()[1:3] == ["0", "0"]  # data, bss
    source, program = folder / "main.c", folder / "main.elf"
    source.write_text(MAIN)
    link = ("--specs=nosys.specs", "-nostartfiles", "-Wl,-e,main,--gc-sections")
    command = ("arm-none-eabi-gcc", "-Os", *MACHINE, f"-I{DEVICE}", source, *objects)
    done = run(*command, *link, "-o", program, text=True)
    assert done.returncode == 0, done.stderr
    text = run("arm-none-eabi-size", program, text=True).stdout.splitlines()[1].split()
    assert 1000 < int(text[0]) < most


def test_stack_on_a_cortex_m4(cortex: Path) -> None:
    """The deepest chain of calls, the caller's functions not counted; without recursion."""
    folder = cortex / "stack"
    flags = (*MACHINE, *SECTIONS, "-fcallgraph-info=su")
    compile_objects(folder, ["arm-none-eabi-g++"], *flags)
    own: dict[str, int] = {}
    calls: dict[str, set[str]] = {}
    for path in folder.glob("*.ci"):
        text = path.read_text()
        for title, label in re.findall(r'node: \{ title: "(.*?)" label: "(.*?)"', text):
            found = re.search(r"(\d+) bytes \(static\)", label)
            own[title] = int(found[1]) if found else own.get(title, 0)
            assert "dynamic" not in label
        for caller, called in re.findall(r'sourcename: "(.*?)" targetname: "(.*?)"', text):
            calls.setdefault(caller, set()).add(called)

    @cache
    def depth(function: str) -> int:  # recursion would not end
        return own.get(function, 0) + max((depth(f) for f in calls.get(function, ())), default=0)

    deepest = max(depth(function) for function in own)
    assert 1000 < deepest < 4096
    print(f"stack: {deepest} bytes")
