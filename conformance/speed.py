"""Speed and size beside the reference implementation, on the same machine in one run.

    python -m conformance.speed --peer PYTHON --data FOLDER [--models GLOB] [--repeat N]

PYTHON is that of an environment with NNCodec (conformance/nncodec_peer.py says how to make one),
FOLDER holds models as safetensors or npz. For every model and setting both codecs run in turns,
each run in a process of its own, whole pipeline, one thread; the best time of each counts, as
everything that disturbs a run makes it slower. Prints a table; --json prints everything. The
columns "threads" say how much faster ours is with --threads.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conformance.memory import run_measured
from conformance.studies.figures import argument_parser
from nnr_codec import EncodeOptions, decode, encode
from nnr_codec._core import TensorSyntax, TensorToEncode, choose_unary_length, quantize
from nnr_codec.bitstream.qp import step_size
from nnr_codec.bitstream.unit_layout import matrix_shape
from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.cli.text import table

_PEER_SCRIPT = Path(__file__).with_name("nncodec_peer.py")
_COLUMNS = ("model", "qp", "Mw", "bytes", "/peer", "enc Mw/s", "/peer", "dec Mw/s", "/peer",
            "ns/bin", "enc threads", "dec threads", "MB", "peer MB")  # fmt: skip


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.run_ours:
        options = EncodeOptions(qp=arguments.qp[0], lambda_scale=arguments.lambda_scale)
        print(json.dumps(run_ours(arguments.run_ours, options, arguments.threads)))
        return
    paths = sorted(
        path
        for path in Path(arguments.data).iterdir()
        if path.suffix in (".npz", ".safetensors") and fnmatch.fnmatch(path.stem, arguments.models)
    )
    cells = []
    for path in sorted(paths, key=lambda path: path.stat().st_size):
        for qp in arguments.qp:
            print(f"{path.stem}, qp {qp} …", file=sys.stderr)
            cells.append(compare(path, qp, arguments))
    rows = [_row(cell) for cell in cells]
    print(json.dumps(cells, indent=2) if arguments.json else table(_COLUMNS, rows))


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(__doc__)
    parser.add_argument("--peer", help="python with NNCodec")
    parser.add_argument("--data", default=".", help="folder of models")
    parser.add_argument("--models", default="*", help="glob of model names")
    parser.add_argument("--qp", type=int, nargs="+", default=[-38, -24])
    parser.add_argument("--lambda-scale", type=float, default=0.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="also timed with so many")
    parser.add_argument("--run-ours", help=argparse.SUPPRESS)
    return parser


def compare(path: Path, qp: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both codecs in turns; return the best figures of each."""
    scale = arguments.lambda_scale
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "model.npz")
        with open_checkpoint(path) as model:
            np.savez(archive, **dict(model.arrays()))
        ours = [sys.executable, "-m", "conformance.speed", "--run-ours", str(archive)]
        ours += ["--qp", str(qp), "--lambda-scale", str(scale)]
        peer = [arguments.peer, str(_PEER_SCRIPT), "bench", str(archive)]
        peer += [f"qp={qp}", f"lambda_scale={scale}"]
        commands = {
            "ours": [*ours, "--threads", "1"],
            "peer": peer,
            "threads": [*ours, "--threads", str(arguments.threads)],
        }
        runs = [
            {name: _measured(command) for name, command in commands.items()}
            for _ in range(arguments.repeat)
        ]
    best = {name: _best([run[name] for run in runs]) for name in commands}
    return {"model": path.stem, "qp": qp, **best}


def _measured(command: Sequence[str]) -> dict[str, Any]:
    """Run a benchmark; return its figures and the peak of its memory in bytes."""
    lines, peak = run_measured(command)
    return {**json.loads(lines[-1]), "peak_bytes": peak}


def _best(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    best = dict(runs[0])
    for name in ("encode_seconds", "decode_seconds", "peak_bytes"):
        best[name] = min(run[name] for run in runs)
    return best


def run_ours(path: str, options: EncodeOptions, threads: int) -> dict[str, Any]:
    """Encode and decode a model in this process; return figures as the peer's benchmark does."""
    with np.load(path) as archive:
        model = dict(archive.items())
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as executor:
        start = time.perf_counter()
        result = encode(model, options=options, executor=executor)
        encoded = time.perf_counter()
        decode(result.data or b"", executor=executor)
        decoded = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # before the bins are counted
    report = result.report
    return {
        "weights": report.elements,
        "bytes": report.bytes,
        "encode_seconds": encoded - start,
        "decode_seconds": decoded - encoded,
        "nmse": report.nmse,
        "bins": sum(_bins(model[t.name], t.qp, options) for t in report.tensors),
        "codec_peak_bytes": 1024 * peak,
    }


def _bins(values: np.ndarray, qp: int | None, options: EncodeOptions) -> int:
    if qp is None:
        return 0
    rows, cols = matrix_shape(values.shape or (1,))
    weights = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    syntax = partial(TensorSyntax, rows, cols, dependent_quantization=options.dq)
    levels = quantize(syntax(), weights, float(step_size(qp, options.qp_density)))
    coded = syntax(unary_length=choose_unary_length(levels))
    return int(TensorToEncode(coded, levels).count_bins())


def _row(cell: dict[str, Any]) -> tuple[str, ...]:
    ours, peer, threads = cell["ours"], cell["peer"], cell["threads"]
    million = ours["weights"] / 1e6
    bins = ours["bins"] or math.nan
    times = ("encode_seconds", "decode_seconds")
    speeds = [(million / ours[name], peer[name] / ours[name]) for name in times]
    return (
        cell["model"],
        str(cell["qp"]),
        f"{million:.2f}",
        str(ours["bytes"]),
        f"{ours['bytes'] / peer['bytes']:.4f}",
        *(f"{figure:.2f}" for pair in speeds for figure in pair),
        f"{1e9 * ours['decode_seconds'] / bins:.1f}",
        *(f"{ours[name] / threads[name]:.2f}" for name in times),
        f"{ours['codec_peak_bytes'] / 1e6:.0f}",
        f"{peer['peak_bytes'] / 1e6:.0f}",
    )


if __name__ == "__main__":
    main()
