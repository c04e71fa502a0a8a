"""Memory that decoding takes while a stream arrives, beside what it may take.

    python -m conformance.memory_as_it_arrives [--size BYTES] [--largest BYTES] [--json]

Encodes a model of random weights, whose first matrix is the largest, and decodes it in processes of
their own: tensor by tensor from a pipe, to a file, and into a torch module (extra `torch`) from the
file and from a pipe. The peak of each, beyond what the interpreter and the libraries take, is
compared with the largest tensor and 50 MB, and, where there is a module, the module. Exits with 1
if one is above. Linux alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import nnr_codec
from conformance.studies.figures import argument_parser, as_table
from nnr_codec.model import Model, Parameter

BESIDES = 50_000_000
"""Bytes for all else: the unit that is decoded, buffers, what the allocator keeps."""

_COLUMNS = 1000
_OTHERS = 10
"""Times that the other matrices are smaller than the largest one."""

_SHARE = 0.1
"""Of the weights that are not zero: so that encoding takes seconds."""

_OPTIONS = nnr_codec.EncodeOptions.preset("fast", dq=False)
_WORK = {
    "stream_tensors, pipe": (
        "for tensor in nnr_codec.stream_tensors(sys.stdin.buffer):\n    del tensor"
    ),
    "nnr-decode, pipe": "decode.main(['-', '-o', 'decoded.safetensors', '-q', '--threads', '1'])",
    "load_into, file": "load_into(made(), sys.argv[1])",
    "load_into, pipe": "load_into(made(), sys.stdin.buffer)",
}
_TORCH = """
import torch
from nnr_codec.layers import load_into

def made():
    module = torch.nn.ParameterDict()
    for name, info in shapes.items():
        module[name] = torch.nn.Parameter(torch.zeros(info), requires_grad=False)
    return module
"""
_PROCESS = """
import json, sys
import nnr_codec
from nnr_codec.cli import decode

shapes = json.loads(sys.argv[2])

def kibibytes(kind):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(kind)).split()[1])
{more}
before = kibibytes("VmRSS")
{work}
print(kibibytes("VmHWM") - before)
"""


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--size", type=float, default=4e8, help="bytes of the model")
    parser.add_argument("--largest", type=float, default=4e7, help="bytes of its largest tensor")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.size, arguments.largest)
    columns = ("run", "peak_bytes", "bound_bytes", "within")
    print(json.dumps(figures, indent=2) if arguments.json else as_table(columns, figures["runs"]))
    return 0 if all(run["within"] for run in figures["runs"]) else 1


def model(size: float, largest: float) -> Model:
    """Return a model of about `size` bytes in float32: a matrix of `largest` bytes, and others."""
    rows = max(1, int(largest) // (4 * _COLUMNS))
    small = max(1, rows // _OTHERS)
    count = max(0, (int(size) - 4 * _COLUMNS * rows) // (4 * _COLUMNS * small))
    parameters = []
    for number, height in enumerate([rows, *[small] * count]):
        shape = (height, _COLUMNS)
        load = partial(_weights, number, shape)
        parameters.append(Parameter(f"w{number}", shape, np.dtype(np.float32), load))
    return Model(parameters)


def _weights(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= rng.random(shape, dtype=np.float32) < _SHARE
    return values


def measure(folder: Path, size: float, largest: float) -> dict[str, Any]:
    """Encode a model in `folder`, and decode it in every way; return the figures."""
    made, stream = model(size, largest), folder / "model.nnr"
    nnr_codec.encode(made, stream, _OPTIONS)
    model_bytes = sum(parameter.nbytes for parameter in made.values())
    biggest = max(parameter.nbytes for parameter in made.values())
    shapes = json.dumps({name: parameter.shape for name, parameter in made.items()})
    runs = []
    for run, work in _WORK.items():
        is_module = run.startswith("load_into")
        bound = biggest + BESIDES + model_bytes * is_module
        code = _PROCESS.format(more=_TORCH if is_module else "", work=work)
        peak = _peak(code, stream, shapes)
        runs.append({"run": run, "peak_bytes": peak, "bound_bytes": bound, "within": peak <= bound})
    return {
        "model_bytes": model_bytes,
        "largest_tensor_bytes": biggest,
        "stream_bytes": stream.stat().st_size,
        "runs": runs,
    }


def _peak(code: str, stream: Path, shapes: str) -> int:
    """Run Python code with the stream's path and the shapes, and the stream from a pipe; return
    what it prints, in bytes.

    Raises:
        CalledProcessError: it fails.
    """
    command = [sys.executable, "-c", code, str(stream), shapes]
    data = stream.read_bytes()  # so that the process has a pipe, and no file, to read
    done = subprocess.run(
        command, input=data, stdout=subprocess.PIPE, cwd=stream.parent, check=True
    )
    return 1024 * int(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
