"""How long the search with feedback takes, with the processor's vectors and without.

    python -m conformance.studies.feedback_speed [--repeat N] [--json]

Both find the same integers, in turns in one process with one thread, of random matrices: the best
time of each counts. `plain` and `fast` are nanoseconds a weight, `times` their quotient.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from conformance.studies.figures import argument_parser, as_table
from nnr_codec._core import TensorSyntax, allow_fast_paths, quantize_with_feedback

SHAPES = (16, 144), (64, 576), (64, 2304), (16, 9216)
STEP, RATE = 0.02, 0.05
_DEVIATION = 0.05  # of the weights
_COLUMNS = ("rows", "columns", "dq", "plain", "fast", "times")


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    if not allow_fast_paths(True):
        print("this processor has only the plain path", file=sys.stderr)
        return 1
    rows = [measure(*shape, dq, given.repeat) for shape in SHAPES for dq in (True, False)]
    print(json.dumps(rows, indent=2) if given.json else as_table(_COLUMNS, rows))
    return 0


def measure(rows: int, columns: int, dq: bool, repeat: int) -> dict[str, Any]:
    """Return the figures of one matrix; RuntimeError if the integers differ."""
    rng = np.random.default_rng(0)

    def feedback(size: int) -> Any:
        return np.triu(rng.normal(0, size**-0.5, (size, size)).astype(np.float32), 1)

    weights = rng.normal(0, _DEVIATION, rows * columns).astype(np.float32)
    fed = feedback(columns)[None, None], np.ones((1, columns), np.float32), feedback(rows), None
    syntax = TensorSyntax(rows, columns, unary_length=8, dependent_quantization=dq)

    def search() -> Any:
        return quantize_with_feedback(syntax, weights, STEP, RATE, *fed)

    best = {"plain": np.inf, "fast": np.inf}
    found = {}
    for _ in range(repeat):
        for path in best:
            allow_fast_paths(path == "fast")
            seconds, found[path] = _timed(search)
            best[path] = min(best[path], seconds)
    if not np.array_equal(found["plain"], found["fast"]):
        raise RuntimeError(f"{rows} x {columns}: the integers differ")
    plain, fast = (1e9 * best[path] / weights.size for path in ("plain", "fast"))
    shape = {"rows": rows, "columns": columns, "dq": dq}
    return {**shape, "plain": plain, "fast": fast, "times": plain / fast}


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    sys.exit(main())
