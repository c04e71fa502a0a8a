"""Training for low rank and for rate, fine-tuning, and batch norm, on a user's module.

Needs the extra `torch`.
"""

from .batch_norm import fold_batch_norm, reestimate_batch_norm
from .fine_tuning import fine_tune
from .gradual import decompose_gradually
from .projection import LowRankProjection, ranks_at_ratio
from .rank_pruning import RankPruning
from .rate import RateTraining, relative_qps
from .teacher import Distillation

__all__ = [
    "Distillation",
    "LowRankProjection",
    "RankPruning",
    "RateTraining",
    "decompose_gradually",
    "fine_tune",
    "fold_batch_norm",
    "ranks_at_ratio",
    "reestimate_batch_norm",
    "relative_qps",
]
