"""Train the small digits networks that ship beside this file, and draw their data.

Needs nnr_codec, torch 2.13 (CPU) and scikit-learn, whose `load_digits` is the data: 1797 images of
8x8 pixels (https://archive.ics.uci.edu/dataset/80). A third of them, drawn class by class, is the
test set; the networks are never trained on those, nor is anything chosen by them. Some of the
others are the calibration set. Run as

    python -m conformance.models.train_digits

to write the three checkpoints, `digits_test.npz` and `digits_calibration.npz` anew; other versions
of torch may give slightly different weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

from conformance.models import digits
from conformance.studies.digits_task import DIGITS
from conformance.subjects.digits_networks import as_input
from conformance.trainings.resumable import moved
from nnr_codec.checkpoints import save_checkpoint
from nnr_codec.model import Array
from nnr_codec.training import fine_tune

SEED = 17
TEST_SHARE = 1 / 3
EPOCHS = 60
BATCH = 64
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 5e-4
MAX_SHIFT = 1  # pixels, of the training images
CALIBRATION = 500  # images
HERE = Path(__file__).parent


def split() -> tuple[Array, Array, Array, Array]:
    """Return training images, test images (uint8), training labels and test labels (uint8)."""
    data = load_digits()
    images, labels = data.images.astype(np.uint8), data.target.astype(np.uint8)
    parts = train_test_split(
        images, labels, test_size=TEST_SHARE, stratify=labels, random_state=SEED
    )
    return tuple(parts)


def train(build: Callable[[], nn.Module], images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Train a new network on `images` and `labels` with a fixed seed."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # sums are split among threads, which changes the weights
    torch.use_deterministic_algorithms(True)
    network = build()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, steps)
    batches = (
        (moved(images[picked], MAX_SHIFT, torch.default_generator), labels[picked])
        for _ in range(EPOCHS)
        for picked in torch.randperm(len(images)).split(BATCH)
    )
    loss = partial(functional.cross_entropy, label_smoothing=0.05)
    fine_tune(network, optimizer, batches, loss, steps=steps, after_step=schedule.step)
    return network.eval()


def main() -> None:
    """Write the data, train and write the networks, and hold the numpy evaluator against torch."""
    train_images, test_images, train_labels, test_labels = split()
    few = slice(CALIBRATION)  # `split` has shuffled
    for path, images, numbers in (
        (digits.TEST_SET, test_images, test_labels),
        (HERE / "digits_calibration.npz", train_images[few], train_labels[few]),
    ):
        save_checkpoint(path, {"images": images, "labels": numbers}, overwrite=True)
    labels = torch.from_numpy(train_labels.astype(np.int64))
    for name, subject_of in DIGITS.items():
        subject = subject_of()
        network = train(subject.module, as_input(train_images), labels)
        tensors = {
            key: tensor.numpy()
            for key, tensor in network.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        save_checkpoint(subject.checkpoint, tensors, overwrite=True, metadata={"format": "pt"})
        with torch.no_grad():
            predictions = network(as_input(test_images)).argmax(dim=1).numpy()
        if name == "digits_cnn" and np.any(predictions != digits.predictions(tensors, test_images)):
            raise SystemExit("numpy and torch disagree")
        count = sum(tensor.size for tensor in tensors.values())
        correct = np.sum(predictions == test_labels)
        print(f"{name}: {count} parameters, {correct} of {len(test_labels)} images right")


if __name__ == "__main__":
    main()
