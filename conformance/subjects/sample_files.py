"""Samples in `.npz` files, arrays and images: what the networks of this folder share."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnr_codec.experiments.batches import Batch, Batches
from nnr_codec.experiments.datasets.images import as_images
from nnr_codec.model import Array

DECODED_IMAGES = 1000  # kept in memory, of at most 150 kB: a run evaluates the same ones many times


@lru_cache(maxsize=4)
def arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of an `.npz` file; not to be changed."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def labelled_images(path: Path, prepare: Callable[[torch.Tensor], torch.Tensor]) -> Batches:
    """Return the images of an `.npz` file with members `images` and `labels` as batches."""

    def load(indices: Sequence[int]) -> Batch:
        chosen = np.asarray(indices)
        values = arrays(path)
        return prepare(as_images(values["images"][chosen])), values["labels"][chosen]

    return Batches(load, range(len(arrays(path)["labels"])), size=200)


def halves(samples: Batches) -> tuple[Batches, Batches]:
    """Return the samples of even index, which calibrate, and the others, which are measured."""
    even, odd = (replace(samples, indices=samples.indices[start::2]) for start in (0, 1))
    return even, odd


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


def imagenet_halves(
    path: Path,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    side: int = 224,
    *,
    size: int = 100,
    labelled: bool = True,
) -> tuple[Batches, Batches]:
    """Return the images of the ImageNet sample that calibrate, and those that are measured.

    Args:
        path: of the sample; its images of even index calibrate.
        prepare: makes of float32 pixels 0..255, (images, 3, side, side), what the network takes.
        side: to which the images are scaled.
        size: images in a batch.
        labelled: whether the labels are the targets, int64 (images,), or there are none.
    """

    def load(indices: Sequence[int]) -> Batch:
        pixels = np.stack([sample_image(path, int(index), side) for index in indices])
        labels = arrays(path)["labels"][np.asarray(indices)] if labelled else None
        return prepare(as_images(pixels)), labels

    return halves(Batches(load, range(len(arrays(path)["labels"])), size))
