"""Make the reference networks of CIFAR size, trained on JPEG images like those of the test set.

    python -m conformance.references resnet20 … --data DIR -o FOLDER [--minutes M]

The networks of DIR were trained on lossless images, and the test images that are to be had are
JPEG. So ResNet-20 and -56 are trained on from there, and ResNet-32 from the ResNet-56, without the
last four blocks of each stage; the others are trained from the beginning. A run goes on where it
was, also in the middle of an epoch; `--minutes` ends it in good order. What is finished is
FOLDER/NAME.safetensors, and its accuracy on the test images is printed: the baseline of whatever is
made of it.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.model import Model
from nnr_codec.user.module import load_state

sys.path.append(str(Path(__file__).parent / "subjects"))

import cifar_references as subjects
from sample_files import arrays

from conformance.trainings.resumable import Schedule, train_resumably
from nnr_codec.experiments.datasets.images import normalized

TRAINED = {
    "resnet20": "resnet20_cifar10",
    "resnet32": "resnet56_cifar10",
    "resnet56": "resnet56_cifar10",
}
"""Those that are trained on, and from which checkpoints, whose other tensors are left out."""

BATCH = 128
SCHEDULES = {
    "resnet20": (8, 0.01),
    "resnet32": (8, 0.05),
    "resnet56": (8, 0.01),
    "vgg": (16, 0.1),
    "mobilenet": (16, 0.1),
}
"""Epochs, and the first learning rate."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("networks", nargs="+", choices=sorted(subjects.NETWORKS))
    parser.add_argument("--data", type=Path, required=True, help="folder of models and datasets")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of references")
    parser.add_argument("--minutes", type=float, default=math.inf, help="in all")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.networks:
        if (given.output / f"{name}.safetensors").exists():
            continue
        if not make(name, given.data, given.output, given.minutes):
            print(f"{name}: not finished; the same command goes on")
            return 1
    return 0


def make(name: str, data: Path, output: Path, minutes: float) -> bool:
    """Train one network, or go on with it; return whether it is finished."""
    torch.manual_seed(0)
    module = subjects.NETWORKS[name]()
    epochs, learning_rate = SCHEDULES[name]
    if name in TRAINED:
        with open_checkpoint(data / "models" / f"{TRAINED[name]}.safetensors") as model:
            load_state(module, Model.from_arrays(dict(model.arrays())))
    images, labels = subjects.training_images(data / subjects.TRAIN)
    steps = epochs * (len(images) // BATCH)
    is_finished = train_resumably(
        module,
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.from_numpy(labels),
        Schedule(steps, learning_rate, batch=BATCH),
        output / f"{name}.state",
        prepare=normalized,
        minutes=minutes,
    )
    if is_finished:
        save_file(module.state_dict(), output / f"{name}.safetensors")
        (output / f"{name}.state").unlink()
        print(f"{name}: top-1 {accuracy(module, data):.2f} %", flush=True)
    return is_finished


def accuracy(module: nn.Module, data: Path) -> float:
    """Return the top-1 accuracy on the test images, in percent."""
    members = arrays(data / subjects.TEST)
    right = 0
    module.eval()
    with torch.no_grad():
        for start in range(0, len(members["labels"]), 500):
            part = torch.from_numpy(members["images"][start : start + 500]).permute(0, 3, 1, 2)
            outputs = module(normalized(part.float())).argmax(1).numpy()
            right += int(np.sum(outputs == members["labels"][start : start + 500]))
    return 100 * right / len(members["labels"])


if __name__ == "__main__":
    sys.exit(main())
