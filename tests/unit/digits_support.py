"""The separable digits network, trained, and images to calibrate it with."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.subjects.digits_networks import MODELS, as_input, separable_network
from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.user.module import load_state


def trained_separable() -> Any:
    """Return the network in evaluation mode."""
    module = separable_network()
    with open_checkpoint(MODELS / "digits_separable.safetensors") as model:
        load_state(module, model)
    return module.eval()


def calibration_batches(count: int, size: int) -> list[Any]:
    """Return the first `count` images in batches of `size`."""
    with np.load(MODELS / "digits_calibration.npz") as archive:
        return list(as_input(archive["images"][:count]).split(size))
