"""Data sets in the folders that torchvision makes of them, for those who have them.

* `vgg16`, `resnet50`, `mobilenet_v2`: torchvision's networks, where it is installed, with
  `models/NAME.*` or `models/NAME-*.*`, such as the files that torchvision downloads, on ImageNet:
  `val/CLASS/*.JPEG` measures; the first image of each `train/CLASS`, if there is `train`,
  calibrates. Images are scaled to 256 and cropped to 224, as the weights IMAGENET1K_V1 want them.
* `resnet8_cifar10_folder` and so on: the CIFAR-10 ResNets on `cifar-10-batches-py`, whose
  `test_batch` measures; every fifth image of `data_batch_1` calibrates.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.batches import Batch, Batches
from nnr_codec.experiments.subject import Subject
from nnr_codec.experiments.subjects._cifar_batches import read_batch
from nnr_codec.experiments.subjects._data import as_images, normalized, wanted
from nnr_codec.experiments.subjects.cifar_resnets import CHECKPOINTS, NETWORKS, PREPARE
from nnr_codec.model import Array

__all__ = ["TORCHVISION", "cifar10_folder", "imagenet_folder"]

TORCHVISION = ("vgg16", "resnet50", "mobilenet_v2")
CLASSES = 1000
SHORTER_SIDE = 256
CROP = 224
IMAGES = 25  # in a batch
CHECKPOINT_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
CALIBRATION_STRIDE = 5


def imagenet_folder(name: str, data: Path | None) -> Subject:
    """Return one of torchvision's networks, by its name there, measured on ImageNet.

    Raises:
        InvalidOptions: torchvision is not installed, or the checkpoint or a folder is missing.
    """
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise InvalidOptions("subject", f"{name}: torchvision is not installed") from error
    folder, validation = wanted(name, data, "models", "val")
    training = validation.with_name("train")
    calibrating = _firsts(_class_folders(name, training)) if training.is_dir() else None
    return Subject(
        name,
        partial(models.get_model, name, weights=None),
        _checkpoint(name, folder),
        _images(_all(_class_folders(name, validation))),
        calibration=_images(calibrating) if calibrating else None,
    )


def _checkpoint(name: str, folder: Path) -> Path:
    """Return the network's only checkpoint in `folder`."""
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in CHECKPOINT_SUFFIXES
        and (path.stem == name or path.stem.startswith(f"{name}-"))
    )
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or f"no {name}.* or {name}-*.*"
        reason = f"{name} takes one checkpoint in {str(folder)!r}; there is {names}"
        raise InvalidOptions("data", reason)
    return found[0]


def _class_folders(name: str, folder: Path) -> list[Path]:
    """Return the folders of ImageNet's classes: in the order of their names is that of labels."""
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(found) != CLASSES:
        reason = (
            f"{name}: {str(folder)!r} has {len(found)} folders, not one for each of 1000 classes"
        )
        raise InvalidOptions("data", reason)
    return found


def _all(folders: Sequence[Path]) -> list[tuple[Path, int]]:
    """Return all images of the classes, with their labels."""
    return [(path, label) for label, folder in enumerate(folders) for path in _images_of(folder)]


def _firsts(folders: Sequence[Path]) -> list[tuple[Path, int]]:
    """Return the first image of each class that has one."""
    return [
        (path, label) for label, folder in enumerate(folders) for path in _images_of(folder)[:1]
    ]


def _images_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _images(files: Sequence[tuple[Path, int]]) -> Batches:
    """Return images as the networks take them."""

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


def cifar10_folder(name: str, data: Path | None) -> Subject:
    """Return one of the CIFAR-10 ResNets, measured on CIFAR-10's own test images.

    Raises:
        InvalidOptions: a file is missing from `data`.
    """
    network = name.removesuffix("_folder")
    checkpoint, test, training = wanted(
        name,
        data,
        CHECKPOINTS[network],
        "cifar-10-batches-py/test_batch",
        "cifar-10-batches-py/data_batch_1",
    )
    prepare = PREPARE[network]

    def load(path: Path, indices: Sequence[int]) -> Batch:
        pixels, labels = read_batch(path)
        chosen = np.asarray(indices)
        return prepare(as_images(pixels[chosen])), labels[chosen]

    measured, calibrating = (
        Batches(partial(load, path), range(len(read_batch(path)[1])), size=200)
        for path in (test, training)
    )
    few = calibrating.indices[::CALIBRATION_STRIDE]
    return Subject(
        name,
        NETWORKS[network],
        checkpoint,
        measured,
        calibration=Batches(calibrating.load, few, calibrating.size),
    )
