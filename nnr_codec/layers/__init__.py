"""Layers of PyTorch that run on factors, and loading them into a model (extra `torch`)."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("nnr_codec.layers needs torch: pip install nnr-codec[torch]") from error

from .factorized import FactorizedLayer, factored
from .loading import load_into
from .replacing import factorize, with_dense_layers
from .writing import dense_state, factored_weights

__all__ = [
    "FactorizedLayer",
    "dense_state",
    "factored",
    "factored_weights",
    "factorize",
    "load_into",
    "with_dense_layers",
]
