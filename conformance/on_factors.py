"""What decomposition saves on a device: the digits network in C, on products and on their factors.

    python -m conformance.on_factors [--ratios 2 3 5 8]

The network is decomposed (CP for 3x3 convolutions, LR for linear layers), its factors are trained
for 300 steps, and it is encoded. `conformance/on_device/digits` decodes the bitstream by the device
decoder, and runs on the test images twice: on dense weights, the products; and on the factors,
whose layers are chains of small convolutions. Needs torch, and a C and a C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import nnr_codec
from conformance.models import digits

HERE = Path(__file__).parent
DEVICE = HERE.parent / "nnr_codec" / "_core" / "device"
PROGRAM = HERE / "on_device"
NETWORK = HERE / "models" / "digits_cnn.safetensors"
RATIOS = (2.0, 3.0, 5.0, 8.0)
SEED = 0
MILD = 3.0  # ratios up to this have the first of two learning rates
LEARNING_RATES = (0.001, 0.003)
STEPS = 300
LAYERS = ("dense", "factorized")
CXX_FLAGS = ("-std=c++17", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off",
             "-DNNR_PLAIN_PATHS_ALONE")  # fmt: skip


class Run(NamedTuple):
    """One network on the test images.

    Attributes:
        top1: in percent.
        label_sum: the sum of the outputs for the right labels.
        multiplications: for one image.
        weight_bytes: of all tensors that are in memory.
        seconds: for one image.
    """

    top1: float
    label_sum: float
    multiplications: int
    weight_bytes: int
    seconds: float


def compile_decoder(folder: Path, compiler: Sequence[str]) -> list[Path]:
    """Compile the device decoder; return the object files. Raises CalledProcessError."""
    objects = []
    for source in [DEVICE / "nnr.cpp", *sorted(DEVICE.glob("*/*.cpp"))]:
        objects.append(folder / f"{source.parent.name}_{source.stem}.o")
        subprocess.run([*compiler, *CXX_FLAGS, "-c", source, "-o", objects[-1]], check=True)
    return objects


def build(folder: Path) -> Path:
    """Compile the program; raises CalledProcessError if that fails."""
    c, cxx = os.environ.get("CC", "cc"), os.environ.get("CXX", "c++")
    objects = compile_decoder(folder, [cxx, "-O2"])
    program = folder / "digits"
    sources = sorted(PROGRAM.glob("*.c"))
    command = [c, "-std=c99", "-O2", f"-I{DEVICE}", *sources, *objects, "-lm", "-o", program]
    subprocess.run(command, check=True)
    return program


def write_images(path: Path) -> None:
    """Write the test images as the program reads them."""
    images, labels = digits.load_test_set()
    records = np.concatenate([images.reshape(len(images), -1), labels[:, np.newaxis]], axis=1)
    path.write_bytes(records.astype(np.uint8).tobytes())


def measure(program: Path, stream: Path, images: Path, layers: str) -> Run:
    """Let the program decode and run; raises CalledProcessError if it fails."""
    command: list[str | Path] = [program, stream, images, layers]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return Run(
        100 * said["right"] / said["images"],
        said["sum"],
        said["multiplications"],
        said["bytes"],
        said["seconds"] / said["images"],
    )


def trained(ratio: float) -> bytes:
    """Return a bitstream of the network with factorized layers, trained."""
    import torch

    from conformance.subjects.digits_networks import cnn
    from conformance.trainings.methods import fine_tuned
    from nnr_codec.experiments.evaluation import trained_module
    from nnr_codec.experiments.training_run import TrainingRun

    torch.set_num_threads(1)
    subject = cnn()
    run = TrainingRun(subject, trained_module(subject).eval(), None, SEED, None)
    rate = LEARNING_RATES[ratio > MILD]
    return fine_tuned(
        run, method="cp", ratio=ratio, steps=STEPS, digits_steps=STEPS, learning_rate=rate
    )


def table(ratios: Sequence[float]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| network | bitstream | run on | top-1 | multiplications | weights | an image |"
    yield "| --- | ---: | --- | ---: | ---: | ---: | ---: |"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program, images, stream = build(folder), folder / "images", folder / "digits.nnr"
        write_images(images)
        for ratio in (1.0, *ratios):
            data = trained(ratio) if ratio > 1 else nnr_codec.encode(NETWORK).data or b""
            stream.write_bytes(data)
            for layers in LAYERS[: 1 if ratio == 1 else 2]:
                run = measure(program, stream, images, layers)
                yield (
                    f"| {f'{ratio:g}x' if ratio > 1 else 'as it was'} "
                    f"| {stream.stat().st_size / 1000:.1f} kB "
                    f"| {'products' if layers == 'dense' and ratio > 1 else layers} "
                    f"| {run.top1:.1f} % | {run.multiplications / 1000:.0f} k "
                    f"| {run.weight_bytes / 1000:.1f} kB | {1e3 * run.seconds:.2f} ms |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    for line in table(parser.parse_args().ratios):
        print(line, flush=True)


if __name__ == "__main__":
    main()
