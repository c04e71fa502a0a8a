"""Rate and accuracy at fixed operating points, and the pins that they are compared with.

    python tests/conformance/rate_accuracy.py [--data DIR]

measures everything anew and replaces the pins beside this file; without --data those of the real
networks stay as they are. Do so after a change that is meant to change bytes, and look at what
changed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PINS = Path(__file__).with_name("rate_accuracy.json")
SUBJECTS = Path(__file__).parents[2] / "conformance" / "subjects"
DIGITS_NETWORKS = ("cnn", "residual", "separable")
REAL_NETWORKS = ("resnet8_cifar10", "resnet20_cifar10", "resnet56_cifar10")
REAL_STRIDE = 20
"""Every twentieth test image of CIFAR-10: 500."""

POINTS: dict[str, dict[str, Any]] = {
    "uniform": {"qp": -28, "dq": False},
    "dependent": {"qp": -24},
    "dependent, RDO": {"qp": -26, "lambda_scale": 1.0},
    "best": {"qp": -24, "preset": "best"},
}
"""Options of ``nnr`` by name. The first two, and the last, are plain quantization."""


@dataclass(frozen=True)
class Outcome:
    """A network at an operating point.

    Attributes:
        bytes: of the stream.
        correct: right answers.
        samples: answers.
    """

    bytes: int
    correct: int
    samples: int


def measure(source: str, point: str | None, data: Path | None = None, stride: int = 1) -> Outcome:
    """Encode a network, decode it, and count its right answers; `point` None: uncompressed."""
    from nnr_codec.experiments.cells import SCORE, Cell
    from nnr_codec.experiments.cells import measure as measure_cell
    from nnr_codec.experiments.methods import codec_from
    from nnr_codec.experiments.plan import Point, SubjectPlan

    subject = SubjectPlan(source.rpartition(":")[2], source, stride)
    whole = measure_cell(Cell(subject), data)
    found = whole
    if point is not None:
        made = Point(point, codec_from("nnr", POINTS[point], Path()))
        found = measure_cell(Cell(subject, "nnr", made), data, whole.samples["outputs"])
    right = found.samples[SCORE + "top1"]
    return Outcome(found.record["bytes"], int(np.count_nonzero(right)), len(right))


def load_pins() -> dict[str, dict[str, Outcome]]:
    """Return the pinned outcomes by network and operating point."""
    found = json.loads(PINS.read_text(encoding="utf-8"))
    return {
        network: {point: Outcome(**values) for point, values in points.items()}
        for network, points in found.items()
    }


def source_of(network: str) -> str:
    """Return the source of a network."""
    file = "digits_networks.py" if network in DIGITS_NETWORKS else "cifar_resnets.py"
    return f"{SUBJECTS / file}:{network}"


def main() -> None:
    """Replace the pins."""
    parser = argparse.ArgumentParser(description="Pin rate and accuracy anew.")
    parser.add_argument("--data", type=Path, help="folder of the real models and data")
    data = parser.parse_args().data
    pins = json.loads(PINS.read_text(encoding="utf-8")) if PINS.exists() else {}
    points = [None, *POINTS]
    for network in DIGITS_NETWORKS:
        outcomes = {p or "uncompressed": measure(source_of(network), p) for p in points}
        pins[network] = {point: vars(outcome) for point, outcome in outcomes.items()}
    for network in REAL_NETWORKS if data else ():
        outcomes = {
            p or "uncompressed": measure(source_of(network), p, data, REAL_STRIDE) for p in points
        }
        pins[network] = {point: vars(outcome) for point, outcome in outcomes.items()}
    PINS.write_text(json.dumps(pins, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
