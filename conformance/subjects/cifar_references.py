"""Networks of CIFAR size that were trained on JPEG images like those of the test set.

`conformance.references` makes them; they are in the folder that the environment variable
NNR_REFERENCES names. Data: `datasets/cifar10_test.npz` to measure; to calibrate, images of
`datasets/cifar10_train_jpeg.npz`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar_resnets import ResNet
from sample_files import arrays, labelled_images
from torch import nn

from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.batches import Batch, Batches
from nnr_codec.experiments.datasets.images import as_images, normalized, required_files
from nnr_codec.experiments.subject import Subject
from nnr_codec.model import Array

TRAIN, TEST = "datasets/cifar10_train_jpeg.npz", "datasets/cifar10_test.npz"
FOLDER = "NNR_REFERENCES"
CALIBRATION_STRIDE = 25  # 2000 images
VGG = (32, 0, 64, 64, 0, 128, 128, 0, 256, 256, 0)  # channels; 0: pooling
INVERTED = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 3, 2), (6, 96, 2, 1))
"""Of the MobileNetV2-like network: expansion, channels, blocks, stride."""


def vgg() -> nn.Module:
    """A plain chain of 3x3 convolutions with batch norm, as VGG has them, and a linear layer."""
    layers: list[nn.Module] = []
    inputs = 3
    for channels in VGG:
        if channels == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(inputs, channels, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        inputs = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


class Inverted(nn.Module):
    """An inverted residual: 1x1 up, 3x3 in each channel, 1x1 down (arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = self.layers(maps)
        return maps + inner if self.adds else inner


def mobilenet() -> nn.Module:
    """Inverted residuals as MobileNetV2 has them, narrower and with fewer strides."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for expansion, channels, blocks, stride in INVERTED:
        for block in range(blocks):
            layers.append(Inverted(inputs, channels, expansion, stride if block == 0 else 1))
            inputs = channels
    layers += [nn.Conv2d(inputs, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": partial(ResNet, 3),
    "resnet32": partial(ResNet, 5),
    "resnet56": partial(ResNet, 9),
    "vgg": vgg,
    "mobilenet": mobilenet,
}


@lru_cache(maxsize=1)
def training_images(path: Path) -> tuple[Array, Array]:
    """Return the decoded training images, uint8 (images, 32, 32, 3), and their labels."""
    from PIL import Image

    members = arrays(path)
    data, offsets = members["jpeg"].tobytes(), members["offsets"]
    images = np.empty((len(offsets) - 1, 32, 32, 3), np.uint8)
    for index, (start, end) in enumerate(pairwise(offsets)):
        image: Any = Image.open(io.BytesIO(data[start:end]))
        images[index] = np.asarray(image.convert("RGB"))
    return images, members["labels"]


def _calibration(path: Path) -> Batches:
    def load(indices: Sequence[int]) -> Batch:
        images, labels = training_images(path)
        chosen = np.asarray(indices)
        return normalized(as_images(images[chosen])), labels[chosen]

    count = len(arrays(path)["labels"])
    return Batches(load, range(0, count, CALIBRATION_STRIDE), size=200)


def _subject(name: str, data: Path | None) -> Subject:
    """Return a network; raises what `required_files` raises, and InvalidOptions without it."""
    train, test = required_files(name, data, TRAIN, TEST)
    folder = os.environ.get(FOLDER)
    checkpoint = Path(folder or "", f"{name}.safetensors")
    if folder is None or not checkpoint.is_file():
        reason = f"{FOLDER} names no folder with {checkpoint.name} (conformance.references)"
        raise InvalidOptions("subject", f"{name}: {reason}")
    measured = labelled_images(test, normalized)
    return Subject(name, NETWORKS[name], checkpoint, measured, calibration=_calibration(train))


resnet20 = partial(_subject, "resnet20")
resnet32 = partial(_subject, "resnet32")
resnet56 = partial(_subject, "resnet56")
vgg_like = partial(_subject, "vgg")
mobilenet_like = partial(_subject, "mobilenet")
