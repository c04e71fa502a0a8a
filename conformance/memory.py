"""Memory that encoding and decoding of a large checkpoint take, beside what they may take.

    python -m conformance.memory [--size BYTES] [--largest BYTES] [--folder FOLDER] [--json]

Makes a safetensors checkpoint of random weights in a temporary folder, encodes and decodes it with
nnr-encode and nnr-decode in processes of their own, one thread, and compares the peak of the memory
of each with 3 times the largest tensor and 200 MB. Exits with 1 if one is above. The folder takes
a little more than twice the size of the checkpoint, and is removed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conformance.studies.figures import argument_parser
from nnr_codec.checkpoints import save_checkpoint
from nnr_codec.cli.text import table
from nnr_codec.model import Parameter

TENSORS = 3
"""Times the largest tensor that may be in memory: values, integers, what decoders make of them."""

BESIDES = 200_000_000
"""Bytes for all else: the interpreter, numpy, codes and buffers."""

_COLUMNS = 1000
_SCALE = 0.02  # of the weights; that of layers of a few thousand inputs
_KIBIBYTE = 1024
# In a process between: a child's peak is never below that of the process that it was started from.
_PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--size", type=float, default=2e9, help="bytes of the checkpoint")
    parser.add_argument("--largest", type=float, default=5e7, help="bytes of its largest tensors")
    parser.add_argument("--folder", help="where to make the temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = measure(Path(folder), arguments.size, arguments.largest)
    print(json.dumps(figures, indent=2) if arguments.json else _table(figures))
    return 1 if any(run["peak_bytes"] > figures["bound_bytes"] for run in figures["runs"]) else 0


def parameters(size: float, largest: float) -> Iterator[Parameter]:
    """Yield a checkpoint of about `size` bytes: matrices of `largest` bytes, and their biases."""
    rows = max(1, int(largest) // (4 * _COLUMNS))
    float32 = np.dtype(np.float32)
    for number in range(max(1, int(size) // (4 * _COLUMNS * rows))):
        for kind, shape in (("weight", (rows, _COLUMNS)), ("bias", (_COLUMNS,))):
            load = partial(_weights, (number, len(shape)), shape)
            yield Parameter(f"layers.{number}.{kind}", shape, float32, load)


def _weights(seed: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    values *= np.float32(_SCALE)
    return values


def measure(folder: Path, size: float, largest: float) -> dict[str, Any]:
    """Encode and decode a checkpoint in `folder`; return the figures."""
    names = ("model.safetensors", "model.nnr", "decoded.safetensors")
    model, stream, output = (folder / name for name in names)
    made = list(parameters(size, largest))
    save_checkpoint(model, made)
    arguments = {"encode": (model, stream), "decode": (stream, output)}
    runs = [
        {"run": name, **_run(f"nnr_codec.cli.{name}", *paths)} for name, paths in arguments.items()
    ]
    weights = sum(parameter.size for parameter in made)
    for run in runs:
        run["weights_per_second"] = weights / run["seconds"]
    biggest = max(parameter.nbytes for parameter in made)
    return {
        "weights": weights,
        "model_bytes": model.stat().st_size,
        "stream_bytes": stream.stat().st_size,
        "largest_tensor_bytes": biggest,
        "bound_bytes": TENSORS * biggest + BESIDES,
        "runs": runs,
    }


def _run(module: str, source: Path, output: Path) -> dict[str, Any]:
    """Run a command on one thread; return its time and the peak of its memory."""
    command = [sys.executable, "-m", module, source.name, "-o", output.name, "-q", "--threads", "1"]
    start = time.perf_counter()
    # Not where this was started: the sources there have no core beside them.
    _, peak = run_measured(command, source.parent)
    return {"seconds": time.perf_counter() - start, "peak_bytes": peak}


def run_measured(command: Sequence[str], folder: Path | None = None) -> tuple[list[str], int]:
    """Run a command in a folder; return the lines that it prints, and the peak of its memory.

    Raises:
        SystemExit: it fails.
    """
    whole = [sys.executable, "-c", _PEAK, *command]
    done = subprocess.run(whole, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stderr}")
    *lines, peak = done.stdout.splitlines()
    return lines, _KIBIBYTE * int(peak)


def _table(figures: dict[str, Any]) -> str:
    rows, bound = [], figures["bound_bytes"]
    for run in figures["runs"]:
        peak, millions = run["peak_bytes"], run["weights_per_second"] / 1e6
        figures_of_run = (f"{run['seconds']:.1f}", f"{millions:.2f}", f"{peak / 1e6:.0f}")
        within = "yes" if peak <= bound else "NO"
        rows.append((run["run"], *figures_of_run, f"{bound / 1e6:.0f}", within))
    sizes = (figures[f"{name}_bytes"] / 1e6 for name in ("model", "stream", "largest_tensor"))
    head = "{:.0f} MB -> {:.0f} MB, largest tensor {:.0f} MB".format(*sizes)
    return f"{head}\n{table(('run', 's', 'Mw/s', 'peak MB', 'bound MB', 'within'), rows)}"


if __name__ == "__main__":
    sys.exit(main())
