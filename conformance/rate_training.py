"""Training for rate: bytes and accuracy of reference networks that learn to take few bits.

    python -m conformance.references resnet20 --data DIR -o FOLDER
    python -m conformance.rate_training resnet20 --data DIR --references FOLDER -o RUNS.jsonl

Each run goes on from a reference (`conformance.references`), with its training images, by
`nnr_codec.training.RateTraining`; then the network is encoded, decoded and judged on the test
images. A run is resumed where it was, `--minutes` ends it in good order, and what is in RUNS.jsonl
is not repeated. `--table` prints what is there, and beside it what the reference takes untrained,
by the default encoder at several qp.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nnr_codec
from conformance.references import accuracy, subjects
from conformance.trainings.resumable import Schedule, train_resumably
from nnr_codec.experiments.datasets.images import normalized
from nnr_codec.layers import load_into
from nnr_codec.training import RateTraining

QPS, STRENGTHS = (-16,), (1.0, 3.0, 10.0)
EPOCHS, LEARNING_RATE = 4, 1e-3
VECTOR_QP = -40
"""Of vectors, whose usual fine step would take a large part of what is left by now."""

UNTRAINED = (-32, -28, -26, -24, -22, -20, -18)


@dataclass(frozen=True)
class Run:
    """What is trained, and how."""

    network: str
    qp: int
    strength: float
    epochs: int


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("networks", nargs="+", choices=sorted(subjects.NETWORKS))
    parser.add_argument("--data", type=Path, required=True, help="folder of models and datasets")
    parser.add_argument("--references", type=Path, required=True, help="their folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a line for each run")
    parser.add_argument("--qps", type=int, nargs="+", default=QPS)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--minutes", type=float, default=math.inf, help="for each run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.table:
        print("\n".join(table(given)))
        return 0
    for network in given.networks:
        for qp in given.qps:
            for strength in given.strengths:
                run = Run(network, qp, strength, given.epochs)
                if not any(line["run"] == asdict(run) for line in lines(given.output)):
                    result = measure(run, given)
                    if result is None:
                        print(f"{run}: not finished; the same command goes on")
                        return 1
                    with given.output.open("a") as file:
                        file.write(json.dumps({"run": asdict(run), **result}) + "\n")
                    print(run, result, flush=True)
    return 0


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the runs that are in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def reference(network: str, folder: Path) -> nn.Module:
    """Return a reference, in evaluation mode."""
    module = subjects.NETWORKS[network]()
    return load_into(module, folder / f"{network}.safetensors").eval()


def adam(parameters: Iterable[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """Return Adam, for which gradients of rates and of the task are of one size, without decay:
    what draws weights to zero is their rate."""
    return torch.optim.Adam(parameters, schedule.learning_rate)


def measure(run: Run, given: argparse.Namespace) -> dict[str, Any] | None:
    """Train, encode and judge; None: the time did not suffice."""
    module = reference(run.network, given.references)
    images, labels = subjects.training_images(given.data / subjects.TRAIN)
    rate = RateTraining(module, qp=run.qp, strength=run.strength)
    name = f"{run.network}_{run.qp}_{run.strength:g}_{run.epochs}"
    is_finished = train_resumably(
        module,
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.from_numpy(labels),
        Schedule(epochs=run.epochs, learning_rate=LEARNING_RATE),
        given.output.with_name(f"{name}.state"),
        prepare=normalized,
        loss=rate.loss(nn.functional.cross_entropy),
        make_optimizer=adam,
        minutes=given.minutes,
    )
    if not is_finished:
        return None
    rate.finish()
    result = judged(module, replace(rate.options(), nonweight_qp=VECTOR_QP), given.data)
    given.output.with_name(f"{name}.state").unlink()
    return result


def judged(module: nn.Module, options: nnr_codec.EncodeOptions, data: Path) -> dict[str, Any]:
    """Encode a network, load what is decoded into it, and judge that."""
    stream = nnr_codec.encode(module, options=options).data or b""
    load_into(module, stream)
    digest = hashlib.sha256(stream).hexdigest()
    return {"bytes": len(stream), "top1": accuracy(module, data), "sha256": digest}


def table(given: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| network | qp | strength | bytes | times smaller | top-1 | drop |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for network in given.networks:
        module = reference(network, given.references)
        whole = sum(4 * tensor.numel() for tensor in module.state_dict().values())
        first = accuracy(module, given.data)
        yield f"| {network} | | | {whole} | 1 | {first:.2f} % | |"
        for qp in UNTRAINED:
            module = reference(network, given.references)
            result = judged(module, nnr_codec.EncodeOptions(qp=qp), given.data)
            yield _row(network, qp, "untrained", result, whole, first)
        for line in lines(given.output):
            if line["run"]["network"] == network:
                run = line["run"]
                yield _row(network, run["qp"], f"{run['strength']:g}", line, whole, first)


def _row(
    network: str, qp: int, strength: str, result: dict[str, Any], whole: int, first: float
) -> str:
    times, drop = whole / result["bytes"], first - result["top1"]
    return (
        f"| {network} | {qp} | {strength} | {result['bytes']} | {times:.1f} "
        f"| {result['top1']:.2f} % | {drop:.2f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
