"""The device decoder, compiled for this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))  # its small streams

from device_support import (
    HARNESS,
    NNRDEC,
    SANITIZERS,
    HostBuild,
    compile_objects,
    host_compilers,
    link_program,
    run,
)


@pytest.fixture(scope="session")
def compilers() -> tuple[str, str]:
    """The compilers of C and C++; skips where there are none."""
    found = host_compilers()
    if found is None:
        pytest.skip("no C and C++ compiler")
    return found


@pytest.fixture(scope="session")
def host(compilers: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> HostBuild:
    c, cxx = compilers
    folder = tmp_path_factory.mktemp("device")
    objects = compile_objects(folder, [cxx], "-O1", "-fPIC")
    harness = link_program(folder / "harness", [c], [HARNESS], objects)
    command = link_program(folder / "nnrdec", [c], NNRDEC, objects)
    library = folder / "libnnr.so"
    assert run(c, "-shared", *objects, "-o", library).returncode == 0
    return HostBuild(folder, c, objects, harness, command, library)


@pytest.fixture(scope="session")
def sanitized(compilers: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness with sanitizers; skips where there are none."""
    c, cxx = compilers
    folder = tmp_path_factory.mktemp("sanitized")
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    if run(c, *SANITIZERS, probe, "-o", folder / "probe").returncode:
        pytest.skip(f"{c} has no address and undefined behaviour sanitizers")
    objects = compile_objects(folder, [cxx], "-O1", *SANITIZERS)
    return link_program(folder / "harness", [c], [HARNESS], objects, *SANITIZERS)
