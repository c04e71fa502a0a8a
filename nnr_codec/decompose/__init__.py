"""Algorithms that decompose weights into the forms of ``nnr_codec.factorization``."""

from .decomposition import Decomposition
from .select import decompose_model

__all__ = ["Decomposition", "decompose_model"]
