"""Train the small digits network that ships beside this file, and its test set.

Needs nnr_codec, torch 2.13 (CPU) and scikit-learn, whose `load_digits` is the data: 1797 images of
8x8 pixels (https://archive.ics.uci.edu/dataset/80). A third of them, drawn class by class, is the
test set; the network is never trained on those, nor is anything chosen by them. Run as

    python -m conformance.models.train_digits

to write `digits_cnn.safetensors` and `digits_test.npz` anew; other versions of torch may give
slightly different weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

from conformance.models import digits
from nnr_codec.checkpoints import save_checkpoint

Array = npt.NDArray[Any]

SEED = 17
TEST_SHARE = 1 / 3
CHANNELS = (32, 64, 72)
EPOCHS = 60
BATCH = 64
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 5e-4
MAX_SHIFT = 1  # pixels, of the training images
CHECKPOINT = Path(__file__).with_name("digits_cnn.safetensors")


class DigitsNetwork(nn.Module):
    """The network; takes float32 (images, 1, 8, 8) from 0 to 1 and gives (images, 10)."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = CHANNELS
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third * 2 * 2, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the outputs before the softmax."""
        maps = functional.relu(self.bn1(self.conv1(images)))
        maps = functional.max_pool2d(functional.relu(self.bn2(self.conv2(maps))), 2)
        maps = functional.max_pool2d(functional.relu(self.bn3(self.conv3(maps))), 2)
        outputs: torch.Tensor = self.fc(maps.flatten(1))
        return outputs


def split() -> tuple[Array, Array, Array, Array]:
    """Return training images, test images (uint8), training labels and test labels (uint8)."""
    data = load_digits()
    images, labels = data.images.astype(np.uint8), data.target.astype(np.uint8)
    parts = train_test_split(
        images, labels, test_size=TEST_SHARE, stratify=labels, random_state=SEED
    )
    return tuple(parts)


def as_input(images: Array) -> torch.Tensor:
    """Return uint8 images (images, 8, 8) as the network's input."""
    return torch.from_numpy(images[:, np.newaxis].astype(np.float32) / digits.PIXEL_MAX)


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Move each image by up to MAX_SHIFT pixels, zeros coming in."""
    padded = functional.pad(images, (MAX_SHIFT,) * 4)
    moves = torch.randint(0, 2 * MAX_SHIFT + 1, (len(images), 2)).tolist()
    return torch.stack(
        [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, moves, strict=True)]
    )


def train(images: torch.Tensor, labels: torch.Tensor) -> DigitsNetwork:
    """Train on `images` and `labels` with a fixed seed."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # sums are split among threads, which changes the weights
    torch.use_deterministic_algorithms(True)
    network = DigitsNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, steps)
    for _ in range(EPOCHS):
        for picked in torch.randperm(len(images)).split(BATCH):
            outputs = network(shifted(images[picked]))
            loss = functional.cross_entropy(outputs, labels[picked], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def main() -> None:
    """Train, write both files, and hold the numpy evaluator against torch."""
    train_images, test_images, train_labels, test_labels = split()
    network = train(as_input(train_images), torch.from_numpy(train_labels.astype(np.int64)))
    tensors = {
        name: tensor.numpy()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_checkpoint(CHECKPOINT, tensors, overwrite=True, metadata={"format": "pt"})
    arrays = {"images": test_images, "labels": test_labels}
    save_checkpoint(digits.TEST_SET, arrays, overwrite=True)
    with torch.no_grad():
        expected = network(as_input(test_images)).argmax(dim=1).numpy()
    if not np.array_equal(digits.predictions(tensors, test_images), expected):
        raise SystemExit("numpy and torch disagree")
    count = sum(tensor.size for tensor in tensors.values())
    print(f"{count} parameters, top-1 {digits.accuracy(tensors):.2f} % of {len(test_labels)}")


if __name__ == "__main__":
    main()
