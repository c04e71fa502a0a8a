"""SqueezeNet 1.0 on the ImageNet sample, in Caffe's conventions: BGR, 0..255, less the mean.

Data: `models/squeezenet1_0_imagenet_deepcomp.safetensors` and `datasets/imagenet_1k_sample.npz`, of
which the images of even index calibrate and the odd ones measure.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sample_files import imagenet_halves
from torch import nn
from torch.nn import functional

from nnr_codec.experiments.datasets.images import required_files
from nnr_codec.experiments.subject import Subject

FILES = (
    "models/squeezenet1_0_imagenet_deepcomp.safetensors",
    "datasets/imagenet_1k_sample.npz",
)
MEAN_BGR = (104.0, 117.0, 123.0)
IMAGES = 20  # in a batch; each takes 4.6 MB after the first layer


class Fire(nn.Module):
    """A 1x1 convolution to few channels, and from them a 1x1 and a 3x3 one side by side."""

    def __init__(self, inputs: int, squeezed: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, outputs // 2, 1)
        self.expand3x3 = nn.Conv2d(squeezed, outputs // 2, 3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        few = functional.relu(self.squeeze(maps))
        return functional.relu(torch.cat([self.expand1x1(few), self.expand3x3(few)], 1))


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0 with torchvision's names; takes (images, 3, 224, 224), gives 1000 logits.

    As in Caffe the last convolution is padded by one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, 2),
            nn.ReLU(),
            _pool(),
            *(Fire(96, 16, 128), Fire(128, 16, 128), Fire(128, 32, 256)),
            _pool(),
            *(Fire(256, 32, 256), Fire(256, 48, 384), Fire(384, 48, 384), Fire(384, 64, 512)),
            _pool(),
            Fire(512, 64, 512),
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, 1000, 1, padding=1), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images)).mean((2, 3))


def squeezenet_imagenet(data: Path | None) -> Subject:
    """Return SqueezeNet, measured on 500 images; raises what `required_files` raises."""
    name = "squeezenet_imagenet"
    checkpoint, images = required_files(name, data, *FILES)
    mean = torch.tensor(MEAN_BGR).view(3, 1, 1)
    calibration, measured = imagenet_halves(images, lambda rgb: rgb.flip(1) - mean, size=IMAGES)
    return Subject(name, SqueezeNet, checkpoint, measured, calibration=calibration)
