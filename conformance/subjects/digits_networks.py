"""The small digits networks as subjects of core experiments: `"digits_networks.py:cnn"` and so on.

Also an example of the users' interface: a file like this one is all that an own network needs. The
checkpoints in `../models` were trained by `train_digits.py` there, on images of which the 500 for
calibration are some. The networks take float32 (images, 1, 8, 8) from 0 to 1 and give (images, 10).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from nnr_codec.experiments.subject import Subject

MODELS = Path(__file__).parents[1] / "models"
PARTS = ("test", "calibration")  # images that measure, and that calibrate
PIXEL_MAX = 16  # images are integers from 0 to this


class PlainNetwork(nn.Module):
    """Three convolutions."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = 32, 64, 72
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third * 2 * 2, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the outputs before the softmax."""
        maps = functional.relu(self.bn1(self.conv1(images)))
        maps = functional.max_pool2d(functional.relu(self.bn2(self.conv2(maps))), 2)
        maps = functional.max_pool2d(functional.relu(self.bn3(self.conv3(maps))), 2)
        return self.fc(maps.flatten(1))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps of the outputs, smaller by the stride."""
        inner = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(maps)))))
        return functional.relu(inner + self.shortcut(maps))


def residual_network() -> nn.Module:
    """Return a residual network of two blocks."""
    layers = {
        "conv1": nn.Conv2d(1, 24, 3, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(24),
        "relu": nn.ReLU(),
        "block1": ResidualBlock(24, 24, 1),
        "block2": ResidualBlock(24, 40, 2),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(40 * 4 * 4, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def separable_network() -> nn.Module:
    """Return a network of depthwise-separable convolutions, as MobileNetV1 has them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()

    def add(name: str, inputs: int, outputs: int, size: int, stride: int, groups: int) -> None:
        shape = {"padding": size // 2, "groups": groups}
        layers[f"{name}_conv"] = nn.Conv2d(inputs, outputs, size, stride, **shape, bias=False)
        layers[f"{name}_bn"] = nn.BatchNorm2d(outputs)
        layers[f"{name}_relu"] = nn.ReLU()

    add("first", 1, 32, 3, 1, 1)
    shapes = ((32, 48, 1), (48, 64, 2), (64, 96, 1), (96, 128, 2))
    for number, (inputs, outputs, stride) in enumerate(shapes, 1):
        add(f"depthwise{number}", inputs, inputs, 3, stride, inputs)
        add(f"pointwise{number}", inputs, outputs, 1, 1, 1)
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(128, 10))
    return nn.Sequential(layers)


def _subject(name: str, module: Callable[[], nn.Module]) -> Subject:
    measured, calibration = (partial(batches, f"digits_{part}.npz") for part in PARTS)
    checkpoint = MODELS / f"{name}.safetensors"
    return Subject(name, module, checkpoint, measured, calibration=calibration)


cnn = partial(_subject, "digits_cnn", PlainNetwork)
residual = partial(_subject, "digits_residual", residual_network)
separable = partial(_subject, "digits_separable", separable_network)


def batches(file: str, size: int = 200) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Yield images as networks take them, and their labels."""
    with np.load(MODELS / file) as archive:
        images, labels = archive["images"], archive["labels"]
    for start in range(0, len(images), size):
        yield as_input(images[start : start + size]), labels[start : start + size]


def as_input(images: np.ndarray) -> torch.Tensor:
    """Return uint8 images (images, 8, 8) as networks take them."""
    return torch.from_numpy(images[:, np.newaxis].astype(np.float32) / PIXEL_MAX)
