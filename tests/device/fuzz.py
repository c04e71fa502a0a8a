"""Run libFuzzer on the device decoder.

    PYTHONPATH=. python tests/device/fuzz.py FOLDER --seconds 600

Builds the target with clang and sanitizers, writes small streams and the conformance corpus to
FOLDER/seeds, and lets the fuzzer run. Needs clang and its compiler-rt.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))  # its small streams

from device_support import (
    DEVICE,
    LAYERS,
    SANITIZERS,
    Request,
    compile_objects,
    corpus_requests,
    run,
)
from small_streams import small_streams
from test_device_base_maps import CASES
from update_streams import update_requests

TARGET = Path(__file__).with_name("fuzz_stream.c")
LONGEST = 2600  # bytes of what is mutated
SMALL = 600  # bytes of cases of the corpus that are seeds
MODES = (0, 1, 2, 4, 8)  # of fuzz_stream.c: factors, fed, integers, float16
HAS_PARENT, HAS_LAYERS = 16, 32


def main() -> int:
    parser = argparse.ArgumentParser(description="Run libFuzzer on the device decoder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    given = parser.parse_args()
    program = build(given.folder / "build")
    seeds = given.folder / "seeds"
    write_seeds(seeds)
    options = [f"-max_len={LONGEST}", f"-max_total_time={given.seconds}", "-timeout=20"]
    return subprocess.run(
        [program.resolve(), *options, "-print_final_stats=1", seeds.resolve()],
        cwd=given.folder,
        check=False,
    ).returncode


def build(folder: Path) -> Path:
    """Compile the library and the target."""
    flags = ("-O2", *SANITIZERS, "-fsanitize=fuzzer-no-link")
    objects = compile_objects(folder, ["clang++"], *flags)
    made, program = folder / "target.o", folder / "fuzz_stream"
    done = run("clang", *flags, f"-I{DEVICE}", "-c", TARGET, "-o", made, text=True)
    assert done.returncode == 0, done.stderr
    link = ("-fsanitize=fuzzer,address,undefined", made, *objects, "-o", program)
    done = run("clang++", *link, text=True)
    assert done.returncode == 0, done.stderr
    return program


def write_seeds(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    requests = [Request(s.data, s.parents) for s in small_streams().values()]
    requests += [r for r in corpus_requests(0, SMALL) if not r.parents]
    requests += [r for r in update_requests(0) if len(r.parents) <= 1]
    requests += [Request(s[1], (s[0],)) for s in CASES.values() if len(s) == 2]
    for request in requests:
        parent = request.parents[-1] if request.parents else b""
        for mode in MODES:
            has = (HAS_PARENT if parent else 0) | (HAS_LAYERS if request.options & LAYERS else 0)
            head = bytes([mode | has])
            data = head + len(parent).to_bytes(2, "little") + parent + request.stream
            (folder / hashlib.sha256(data).hexdigest()[:20]).write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
