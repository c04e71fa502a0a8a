"""VDSR: super-resolution of luma by 2, 3 and 4, on four images of Set5.

Data: `models/vdsr_set5.safetensors`, and `datasets/set5y_4of5.npz` to measure: one sample for each
scale and image, in this order. Images of `datasets/imagenet_1k_sample.npz` with even index, made
coarse in the same way, calibrate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sample_files import arrays, sample_image
from torch import nn
from torch.nn import functional

from nnr_codec.experiments.batches import Batch, Batches
from nnr_codec.experiments.datasets.images import required_files
from nnr_codec.experiments.measures.metrics import Reconstruction
from nnr_codec.experiments.subject import Subject
from nnr_codec.model import Array

PEAK = 255  # of luma in the files; the network takes it from 0 to 1
SCALES = (2, 3, 4)
LUMA = (65.481, 128.553, 24.966)  # of R, G, B from 0 to 1, above 16: ITU-R BT.601
CALIBRATING = 48  # images, spread over the sample
SIDE = 224  # of those


class Residual(nn.Module):
    """A convolution of the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.conv(maps))


class Vdsr(nn.Module):
    """VDSR; takes luma (images, 1, height, width) and gives (images, *canvas).

    Args:
        canvas: height and width to which outputs are padded by NaN, at the bottom and on the
            right, so that images of different sizes make one array; None: not at all. Those to
            calibrate with are of one size, and need it not: what is not finite calibrates nothing.
    """

    def __init__(self, canvas: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.input = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.residual_layer = nn.Sequential(*(Residual() for _ in range(18)))
        self.output = nn.Conv2d(64, 1, 3, padding=1, bias=False)
        self.canvas = canvas

    def forward(self, luma: torch.Tensor) -> torch.Tensor:
        maps = self.residual_layer(functional.relu(self.input(luma)))
        restored: torch.Tensor = (luma + self.output(maps))[:, 0]
        if self.canvas is None or luma.shape[2:] == (SIDE, SIDE):
            return restored
        height, width = restored.shape[1:]
        margins = (0, self.canvas[1] - width, 0, self.canvas[0] - height)
        return functional.pad(restored, margins, value=torch.nan)


def vdsr_set5(data: Path | None) -> Subject:
    """Return VDSR, measured on 12 samples; raises what `required_files` raises."""
    name = "vdsr_set5"
    sets = ("datasets/set5y_4of5.npz", "datasets/imagenet_1k_sample.npz")
    checkpoint, set5, imagenet = required_files(name, data, "models/vdsr_set5.safetensors", *sets)
    images = arrays(set5)
    names = sorted(key.removesuffix("_gt") for key in images if key.endswith("_gt"))
    shapes = np.array([images[f"{image}_gt"].shape for image in names])
    canvas = (int(shapes[:, 0].max()), int(shapes[:, 1].max()))
    count = len(names) * len(SCALES)
    measured = Batches(partial(_load_set5, set5, names, canvas), range(count), size=1)
    every_even = range(0, len(arrays(imagenet)["labels"]), 2)
    step = max(1, len(every_even) // CALIBRATING)
    calibrating = Batches(partial(_load_coarse, imagenet), every_even[::step], size=8)
    return Subject(name, partial(Vdsr, canvas), checkpoint, measured, Reconstruction(), calibrating)


def _load_set5(
    path: Path, names: Sequence[str], canvas: tuple[int, int], indices: Sequence[int]
) -> Batch:
    """Return one image; what is not measured of its ground truth is NaN.

    That is what lies outside the image, and a border as wide as the scale, as is usual.
    """
    (index,) = indices
    scale, image = SCALES[index // len(names)], names[index % len(names)]
    images = arrays(path)
    coarse, truth = images[f"{image}_{scale}_in"] / np.float32(PEAK), images[f"{image}_gt"]
    height, width = coarse.shape
    inside = np.s_[scale : height - scale, scale : width - scale]
    target = np.full((1, *canvas), np.nan, np.float32)
    target[0][inside] = truth[inside] / PEAK
    return torch.from_numpy(coarse[np.newaxis, np.newaxis]), target


def _load_coarse(path: Path, indices: Sequence[int]) -> Batch:
    """Return luma of ImageNet's images, scaled down and up again, and as it was.

    The scale changes from batch to batch.
    """
    scale = SCALES[int(indices[0]) // 2 % len(SCALES)]
    fine = [_luma(sample_image(path, int(index), SIDE)) for index in indices]
    coarse = [_down_and_up(image, scale) for image in fine]
    return torch.from_numpy(np.stack(coarse)[:, np.newaxis]), np.stack(fine)


def _luma(pixels: Array) -> Array:
    """Return uint8 RGB (height, width, 3) as luma in studio range: float32, 0 to 1."""
    luma = 16 + pixels.astype(np.float32) / PEAK @ np.array(LUMA, np.float32)
    return (luma / PEAK).astype(np.float32)


def _down_and_up(luma: Array, scale: int) -> Array:
    from PIL import Image

    height, width = luma.shape
    small = (width // scale, height // scale)
    image = Image.fromarray(luma).resize(small, Image.Resampling.BICUBIC)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
