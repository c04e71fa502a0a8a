"""CIFAR-10's own files, `data_batch_1` and so on, which are pickles.

Unpickling runs what a file says. These files are a dict with two members that matter, so their
opcodes are listed, which runs nothing, and the two are picked out: the one string of all pixels,
and the numbers that follow the key `labels`. Written by Python 2, as the original, or 3.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.batches import Batch, Batches
from nnr_codec.experiments.datasets.images import as_images, normalized
from nnr_codec.model import Array

FILES = ("cifar-10-batches-py/test_batch", "cifar-10-batches-py/data_batch_1")
CALIBRATION_STRIDE = 5

SIDE = 32
IMAGE_BYTES = 3 * SIDE * SIDE
CLASSES = 10
NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG1")  # opcodes; others number the memo


def cifar10_folder(
    data: Path, prepare: Callable[[torch.Tensor], torch.Tensor] = normalized
) -> tuple[Batches, Batches]:
    """Return the images that measure, and those that calibrate.

    In `data/cifar-10-batches-py`, `test_batch` measures, and every fifth image of `data_batch_1`
    calibrates. Labels are int64 (images,).

    Args:
        data: the folder that holds the one of CIFAR-10.
        prepare: makes of float32 pixels 0..255, (images, 3, 32, 32), what the network takes.

    Raises:
        InvalidOptions: a file cannot be read, or is no batch of CIFAR-10.
    """

    def load(path: Path, indices: Sequence[int]) -> Batch:
        pixels, labels = read_batch(path)
        chosen = np.asarray(indices)
        return prepare(as_images(pixels[chosen])), labels[chosen]

    def batches(file: str, stride: int) -> Batches:
        indices = range(0, len(read_batch(data / file)[1]), stride)
        return Batches(partial(load, data / file), indices, size=200)

    return batches(FILES[0], 1), batches(FILES[1], CALIBRATION_STRIDE)


@lru_cache(maxsize=2)
def read_batch(path: Path) -> tuple[Array, Array]:
    """Return pixels, uint8 (images, 32, 32, 3), and labels, int64 (images,); not to be changed.

    Raises what `cifar10_folder` raises.
    """
    try:
        with path.open("rb") as file:
            labels, texts = _members(pickletools.genops(file))
    except (OSError, ValueError) as error:
        raise InvalidOptions("data", f"{str(path)!r} cannot be read: {error}") from error
    pixels = [text for text in texts if text and len(text) == len(labels) * IMAGE_BYTES]
    if len(pixels) != 1 or not all(0 <= label < CLASSES for label in labels):
        raise InvalidOptions("data", f"{str(path)!r} is not a batch of CIFAR-10")
    images = np.frombuffer(pixels[0], np.uint8).reshape(-1, 3, SIDE, SIDE)
    return images.transpose(0, 2, 3, 1), np.array(labels, np.int64)


def _members(
    operations: Iterator[tuple[pickletools.OpcodeInfo, object, int | None]],
) -> tuple[list[int], list[bytes]]:
    """Return the numbers between the key `labels` and the next text, and all long texts."""
    labels: list[int] = []
    texts: list[bytes] = []
    within = False
    for operation, argument, _ in operations:
        if isinstance(argument, str | bytes | bytearray):
            # Python 2's strings are listed as text in latin-1.
            text = argument.encode("latin-1") if isinstance(argument, str) else bytes(argument)
            within = text == b"labels"
            if len(text) >= IMAGE_BYTES:
                texts.append(text)
        elif within and operation.name in NUMBERS and isinstance(argument, int):
            labels.append(argument)
    return labels, texts
