"""Training for low rank, fine-tuning, and batch norm, on a user's module (extra `torch`)."""

from .batch_norm import reestimate_batch_norm
from .fine_tuning import fine_tune
from .projection import LowRankProjection, ranks_at_ratio

__all__ = ["LowRankProjection", "fine_tune", "ranks_at_ratio", "reestimate_batch_norm"]
