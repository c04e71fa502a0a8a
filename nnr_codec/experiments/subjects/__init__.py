"""Ready subjects, by name. They look for models and data in the folder that the user names.

Each module says which files it reads. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from nnr_codec.experiments.subject import Subject
from nnr_codec.experiments.subjects.cifar_resnets import NETWORKS, cifar10
from nnr_codec.experiments.subjects.folders import TORCHVISION, cifar10_folder, imagenet_folder
from nnr_codec.experiments.subjects.minilm import minilm_pairs
from nnr_codec.experiments.subjects.mobilenet import mobilenet_vww
from nnr_codec.experiments.subjects.squeezenet import squeezenet_imagenet
from nnr_codec.experiments.subjects.vdsr import vdsr_set5

__all__ = ["READY"]

READY: dict[str, Callable[[Path | None], Subject]] = {
    **{name: partial(cifar10, name) for name in NETWORKS},
    "squeezenet_imagenet": squeezenet_imagenet,
    "mobilenet_vww": mobilenet_vww,
    "vdsr_set5": vdsr_set5,
    "minilm_pairs": minilm_pairs,
    **{name: partial(imagenet_folder, name) for name in TORCHVISION},
    **{f"{name}_folder": partial(cifar10_folder, f"{name}_folder") for name in NETWORKS},
}
