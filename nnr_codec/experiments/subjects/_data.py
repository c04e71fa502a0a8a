"""Reading the samples of the ready subjects: arrays in `.npz` files, and images among them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.batches import Batch, Batches
from nnr_codec.model import Array

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "arrays",
    "as_images",
    "imagenet_pixels",
    "labelled_images",
    "normalized",
    "sample_image",
    "wanted",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of pixels from 0 to 1, as torchvision's networks take them
IMAGENET_STD = (0.229, 0.224, 0.225)
DECODED_IMAGES = 1000  # kept in memory, of at most 150 kB: a run evaluates the same ones many times


def wanted(subject: str, data: Path | None, *names: str) -> list[Path]:
    """Return the paths of `names` below the folder `data`.

    Raises:
        InvalidOptions: there is no folder, or one of them is not in it; says what is missing.
    """
    if data is None:
        raise InvalidOptions("data", f"{subject} needs a folder with {', '.join(names)}")
    missing = [name for name in names if not (data / name).exists()]
    if missing:
        raise InvalidOptions("data", f"{subject} finds no {', '.join(missing)} in {str(data)!r}")
    return [data / name for name in names]


@lru_cache(maxsize=4)
def arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of an `.npz` file; not to be changed."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def as_images(pixels: Array) -> torch.Tensor:
    """Return uint8 pixels (images, height, width, 3) as float32 (images, 3, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float()


def normalized(
    images: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """Return images of pixels 0..255 scaled to 0..1, less the mean, over the deviation."""
    shape = (3, 1, 1)
    return (images / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def labelled_images(path: Path, prepare: Callable[[torch.Tensor], torch.Tensor]) -> Batches:
    """Return the images of an `.npz` file with members `images` and `labels` as batches."""

    def load(indices: Sequence[int]) -> Batch:
        chosen = np.asarray(indices)
        values = arrays(path)
        return prepare(as_images(values["images"][chosen])), values["labels"][chosen]

    return Batches(load, range(len(arrays(path)["labels"])), size=200)


@lru_cache(maxsize=DECODED_IMAGES)
def sample_image(path: Path, index: int, side: int) -> Array:
    """Return one image of the ImageNet sample, scaled to `side`: uint8 (side, side, 3)."""
    from PIL import Image

    members = arrays(path)
    start, end = members["offsets"][index : index + 2]
    image: Any = Image.open(io.BytesIO(members["jpeg"][start:end].tobytes())).convert("RGB")
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)


def imagenet_pixels(path: Path, indices: Sequence[int], side: int = 224) -> tuple[Array, Array]:
    """Return images of the ImageNet sample, uint8 (images, side, side, 3), and their labels."""
    pixels = np.stack([sample_image(path, int(index), side) for index in indices])
    return pixels, arrays(path)["labels"][np.asarray(indices)]
