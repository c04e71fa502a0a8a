"""MobileNetV1 x0.25 for Visual Wake Words (person or none), on the ImageNet sample.

Nobody labelled persons there: what counts is the agreement with the uncompressed network.

Data: `models/mobilenetv1_025_vww96.safetensors` and `datasets/imagenet_1k_sample.npz`, of which the
images of even index calibrate and the odd ones measure.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sample_files import imagenet_halves
from torch import nn
from torch.nn import functional

from nnr_codec.experiments.datasets.images import required_files
from nnr_codec.experiments.measures.metrics import unlabelled_classification
from nnr_codec.experiments.subject import Subject

FILES = ("models/mobilenetv1_025_vww96.safetensors", "datasets/imagenet_1k_sample.npz")
SIDE = 96
EPSILON = 1e-3  # of Keras's batch norm
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
CHANNELS = (8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)


class PaddedConv(nn.Conv2d):
    """A 3x3 convolution, padded as Keras does with `same`: with stride 2 after the maps only."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        before = 2 - self.stride[0]
        return super().forward(functional.pad(maps, (before, 1, before, 1)))


class Separable(nn.Module):
    """A depthwise and a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.dw = PaddedConv(inputs, inputs, 3, stride, groups=inputs)
        self.dwbn = nn.BatchNorm2d(inputs, EPSILON)
        self.pw = nn.Conv2d(inputs, outputs, 1)
        self.pwbn = nn.BatchNorm2d(outputs, EPSILON)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = functional.relu(self.dwbn(self.dw(maps)))
        return functional.relu(self.pwbn(self.pw(maps)))


class MobileNet(nn.Module):
    """MobileNetV1 x0.25; takes (images, 3, 96, 96) from 0 to 1, gives (images, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = PaddedConv(3, CHANNELS[0], 3, 2)
        self.bn0 = nn.BatchNorm2d(CHANNELS[0], EPSILON)
        for number, stride in enumerate(STRIDES, 1):
            inputs, outputs = CHANNELS[number - 1], CHANNELS[number]
            self.add_module(f"block{number}", Separable(inputs, outputs, stride))
        self.fc = nn.Linear(CHANNELS[-1], 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = functional.relu(self.bn0(self.conv0(images)))
        for number in range(1, len(STRIDES) + 1):
            maps = self.get_submodule(f"block{number}")(maps)
        return self.fc(maps.mean((2, 3)))


def mobilenet_vww(data: Path | None) -> Subject:
    """Return MobileNetV1, compared on 500 images; raises what `required_files` raises."""
    name = "mobilenet_vww"
    checkpoint, images = required_files(name, data, *FILES)
    calibration, measured = imagenet_halves(images, lambda rgb: rgb / 255, SIDE, labelled=False)
    return Subject(name, MobileNet, checkpoint, measured, unlabelled_classification, calibration)
