"""Top-1 accuracy of the small digits network, computed with numpy alone.

The network (`digits_cnn.safetensors`, trained by `train_digits.py`) sees 8x8 images of handwritten
digits: three times convolution (3x3, no bias), batch normalization and ReLU, with 2x2 maximum
pooling after the second and the third, then one fully connected layer.

    python -m conformance.models.digits BEFORE AFTER [BITSTREAM]

compares two checkpoints of it, and the size of the first with that of the bitstream between them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.model import Array

TEST_SET = Path(__file__).with_name("digits_test.npz")
PIXEL_MAX = 16  # images are integers from 0 to this
BATCH_NORM_EPSILON = 1e-5  # what torch.nn.BatchNorm2d trained with
POOLED = {"1": False, "2": True, "3": True}  # layers, and whether pooling follows


def accuracy(tensors: Mapping[str, Array]) -> float:
    """Return the top-1 accuracy on the test images, in percent.

    Args:
        tensors: the network's parameters by name, any floating-point type.

    Raises:
        KeyError: a parameter is missing.
        ValueError: a parameter has another shape than the network's.
    """
    images, labels = load_test_set()
    return 100.0 * float(np.mean(predictions(tensors, images) == labels))


def predictions(tensors: Mapping[str, Array], images: Array) -> Array:
    """Return the most likely digit for each of `images`: int64, (images,)."""
    return np.argmax(logits(tensors, images), axis=1)


def logits(tensors: Mapping[str, Array], images: Array) -> Array:
    """Return the network's outputs for `images`, (images, 8, 8): float32, (images, 10)."""
    values = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    maps = images[:, np.newaxis].astype(np.float32) / PIXEL_MAX
    for layer, pooled in POOLED.items():
        maps = _convolve(maps, values[f"conv{layer}.weight"])
        maps = np.maximum(_batch_norm(maps, values, f"bn{layer}"), 0)
        if pooled:
            maps = _pool(maps)
    flat = maps.reshape(len(maps), -1)
    return flat @ values["fc.weight"].T + values["fc.bias"]


def load_test_set() -> tuple[Array, Array]:
    """Return the test images, uint8 (images, 8, 8), and their labels, uint8 (images,)."""
    with np.load(TEST_SET, allow_pickle=False) as archive:
        return archive["images"], archive["labels"]


def _convolve(maps: Array, weight: Array) -> Array:
    """Convolve `maps`, (images, inputs, height, width), keeping height and width by zeros around.

    `weight` is (outputs, inputs, 3, 3).
    """
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    return np.einsum("nihwyx,oiyx->nohw", windows, weight, optimize=True)


def _batch_norm(maps: Array, values: Mapping[str, Array], layer: str) -> Array:
    deviation = np.sqrt(values[f"{layer}.running_var"] + np.float32(BATCH_NORM_EPSILON))
    scale = values[f"{layer}.weight"] / deviation
    shift = values[f"{layer}.bias"] - values[f"{layer}.running_mean"] * scale
    return maps * scale[:, np.newaxis, np.newaxis] + shift[:, np.newaxis, np.newaxis]


def _pool(maps: Array) -> Array:
    """Take the maximum of each 2x2 square of `maps`, (images, channels, height, width)."""
    images, channels, height, width = maps.shape
    squares = maps.reshape(images, channels, height // 2, 2, width // 2, 2)
    return squares.max(axis=(3, 5))


def summary(before: str, after: str, bitstream: str | None = None) -> str:
    """Return one line that compares checkpoint `after` with `before`, in size and accuracy.

    The size after is that of `bitstream`, if it is given, and else that of `after`.
    """
    sizes = [os.path.getsize(path) for path in (before, bitstream or after)]
    scores = []
    for path in (before, after):
        with open_checkpoint(path) as model:
            scores.append(accuracy(dict(model.arrays())))
    kilobytes = " -> ".join(f"{size / 1000:.0f} kB" for size in sizes)
    percent = " -> ".join(f"{score:.1f} %" for score in scores)
    ratio = f"{100 * sizes[1] / sizes[0]:.1f} %"
    return f"{Path(before).stem}: {kilobytes} ({ratio}), top-1 {percent}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", help="checkpoint of the digits network")
    parser.add_argument("after", help="the same after encoding and decoding")
    parser.add_argument("bitstream", nargs="?", help="what is between them")
    arguments = parser.parse_args()
    print(summary(arguments.before, arguments.after, arguments.bitstream))


if __name__ == "__main__":
    main()
