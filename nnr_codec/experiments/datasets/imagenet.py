"""ImageNet in folders, one for each class, and the networks of torchvision that are run on it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.batches import Batch, Batches
from nnr_codec.experiments.datasets.images import as_images, normalized, required_files
from nnr_codec.experiments.subject import Subject
from nnr_codec.model import Array

CLASSES = 1000
SHORTER_SIDE = 256
CROP = 224
IMAGES = 25  # in a batch
CHECKPOINT_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")


def torchvision_network(name: str, data: Path | None) -> Subject:
    """Return one of torchvision's networks, by its name there, measured on ImageNet.

    Its checkpoint is the only `models/NAME.*` or `models/NAME-*.*` in `data`, such as a file that
    torchvision downloads; the images are those of `imagenet_folder`.

    Raises:
        InvalidOptions: torchvision is not installed, or the checkpoint or a folder is missing.
    """
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise InvalidOptions("subject", f"{name}: torchvision is not installed") from error
    checkpoints, validation = required_files(name, data, "models", "val")
    measured, calibration = imagenet_folder(validation.parent)
    return Subject(
        name,
        partial(models.get_model, name, weights=None),
        _checkpoint(name, checkpoints),
        measured,
        calibration=calibration,
    )


def imagenet_folder(data: Path) -> tuple[Batches, Batches | None]:
    """Return the images that measure, and those that calibrate, for torchvision's networks.

    All of `data/val/CLASS/*.JPEG` measure; the first image of each `data/train/CLASS`, if there is
    `train`, calibrates. Images are scaled to 256 and cropped to 224, as the weights IMAGENET1K_V1
    want them: float32 (images, 3, 224, 224); labels are int64 (images,).

    Raises:
        InvalidOptions: a folder has not one folder for each class.
    """
    measured = _labelled_images(data / "val")
    training = data / "train"
    return measured, _labelled_images(training, limit=1) if training.is_dir() else None


def _checkpoint(name: str, folder: Path) -> Path:
    """Return the network's only checkpoint in `folder`."""
    files = sorted(path for path in folder.iterdir() if path.suffix in CHECKPOINT_SUFFIXES)
    paths = [path for path in files if f"{path.stem}-".startswith(f"{name}-")]
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths) or f"no {name}.* or {name}-*.*"
        reason = f"{name} takes one checkpoint in {str(folder)!r}; there is {names}"
        raise InvalidOptions("data", reason)
    return paths[0]


def _labelled_images(folder: Path, limit: int | None = None) -> Batches:
    """Return the images of all classes, at most `limit` of each; labels are in their order."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(classes) != CLASSES:
        count = len(classes)
        reason = f"{str(folder)!r} has {count} folders, not one for each of {CLASSES} classes"
        raise InvalidOptions("data", reason)
    files: list[tuple[Path, int]] = []
    for label, images in enumerate(classes):
        paths = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        files += [(path, label) for path in paths[:limit]]

    def load(indices: Sequence[int]) -> Batch:
        chosen = [files[index] for index in indices]
        pixels = np.stack([_cropped(path) for path, _ in chosen])
        return normalized(as_images(pixels)), np.array([label for _, label in chosen])

    return Batches(load, range(len(files)), IMAGES)


def _cropped(path: Path) -> Array:
    """Return the middle of an image whose shorter side is scaled to 256: uint8 (224, 224, 3)."""
    from PIL import Image

    with Image.open(path) as file:
        image: Any = file.convert("RGB")
    shorter = min(image.size)
    size = tuple(side * SHORTER_SIDE // shorter for side in image.size)
    left, top = (round((side - CROP) / 2) for side in size)
    scaled = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(scaled.crop((left, top, left + CROP, top + CROP)))
