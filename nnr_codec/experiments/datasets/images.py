"""Images as networks take them, and a subject's files, which must be there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nnr_codec.errors import InvalidOptions
from nnr_codec.model import Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of pixels from 0 to 1, as torchvision's networks take them
IMAGENET_STD = (0.229, 0.224, 0.225)


def required_files(subject: str, data: Path | None, *names: str) -> list[Path]:
    """Return the paths of `names` below the folder `data`; InvalidOptions says what is missing."""
    if data is None:
        reason = f"{subject} needs a folder with {', '.join(names)}: give --data"
        raise InvalidOptions("data", reason)
    missing = [name for name in names if not (data / name).exists()]
    if missing:
        raise InvalidOptions("data", f"{subject}: {str(data)!r} lacks {', '.join(missing)}")
    return [data / name for name in names]


def as_images(pixels: Array) -> torch.Tensor:
    """Return uint8 pixels (images, height, width, 3) as float32 (images, 3, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float()


def normalized(
    images: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """Return images of pixels 0..255 scaled to 0..1, less the mean, over the deviation."""
    shape = (3, 1, 1)
    return (images / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
