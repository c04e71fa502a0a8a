"""CIFAR-10 ResNets: 20 and 56 layers with parameter-free shortcuts, and MLPerf Tiny's of 8 layers.

Data: `models/<network>.safetensors`, `datasets/cifar10_test.npz` to measure, and
`datasets/cifar10_calib.npz`, training images, to calibrate. The functions whose names end in
`_folder` read CIFAR-10's own files instead, in `cifar-10-batches-py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from sample_files import labelled_images
from torch import nn
from torch.nn import functional

from nnr_codec.experiments.datasets import cifar10
from nnr_codec.experiments.datasets.images import normalized, required_files
from nnr_codec.experiments.subject import Subject

KERAS_EPSILON = 1e-3  # of batch norm
SAMPLES = ("datasets/cifar10_test.npz", "datasets/cifar10_calib.npz")


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters.

    He et al. 2015, option A: where the shape changes, every second pixel and zeros as channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = (outputs - inputs) // 2  # channels on either side

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(self.bn1(self.conv1(maps)))
        inner = self.bn2(self.conv2(inner))
        short = maps[:, :, :: self.stride, :: self.stride]
        short = functional.pad(short, (0, 0, 0, 0, self.added, self.added))
        return functional.relu(inner + short)


class ResNet(nn.Module):
    """ResNet of `6 * blocks + 2` layers; takes (images, 3, 32, 32), gives (images, 10)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(blocks, 16, 16, 1)
        self.layer2 = self._layer(blocks, 16, 32, 2)
        self.layer3 = self._layer(blocks, 32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _layer(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = functional.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.linear(maps.mean((2, 3)))


class TinyStack(nn.Module):
    """Two biased convolutions beside a shortcut, padded as Keras does with `same`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs, KERAS_EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs, KERAS_EPSILON)
        self.before = 2 - stride  # rows and columns of zeros; with stride 2 all of them come after
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(functional.pad(maps, (self.before, 1, self.before, 1)))
        inner = self.bn2(self.conv2(functional.relu(self.bn1(inner))))
        return functional.relu(inner + self.shortcut(maps))


class TinyResNet(nn.Module):
    """ResNet-8 of MLPerf Tiny; takes pixels 0..255, (images, 3, 32, 32), gives (images, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn0 = nn.BatchNorm2d(16, KERAS_EPSILON)
        self.stack1 = TinyStack(16, 16, 1)
        self.stack2 = TinyStack(16, 32, 2)
        self.stack3 = TinyStack(32, 64, 2)
        self.fc = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = functional.relu(self.bn0(self.conv0(images)))
        maps = self.stack3(self.stack2(self.stack1(maps)))
        return self.fc(maps.mean((2, 3)))


def _unchanged(images: torch.Tensor) -> torch.Tensor:
    return images


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "resnet8_cifar10": (TinyResNet, "resnet8_mlperftiny_cifar10", _unchanged),
    "resnet20_cifar10": (partial(ResNet, 3), "resnet20_cifar10", normalized),
    "resnet56_cifar10": (partial(ResNet, 9), "resnet56_cifar10", normalized),
}
"""For each the module, the checkpoint's name, and what makes the module's input of pixels."""


def _subject(name: str, data: Path | None) -> Subject:
    """Return a network with images; raises what `required_files` raises."""
    module, stem, prepare = NETWORKS[name.removesuffix("_folder")]
    from_folder = name.endswith("_folder")
    files = cifar10.FILES if from_folder else SAMPLES
    checkpoint, *samples = required_files(name, data, f"models/{stem}.safetensors", *files)
    if from_folder:
        measured, calibration = cifar10.cifar10_folder(samples[0].parents[1], prepare)
    else:
        measured, calibration = (labelled_images(path, prepare) for path in samples)
    return Subject(name, module, checkpoint, measured, calibration=calibration)


resnet8_cifar10 = partial(_subject, "resnet8_cifar10")
resnet20_cifar10 = partial(_subject, "resnet20_cifar10")
resnet56_cifar10 = partial(_subject, "resnet56_cifar10")
resnet8_cifar10_folder = partial(_subject, "resnet8_cifar10_folder")
resnet20_cifar10_folder = partial(_subject, "resnet20_cifar10_folder")
resnet56_cifar10_folder = partial(_subject, "resnet56_cifar10_folder")
