"""Batch norms of which two vectors say all that four, and the bias of the layer before, do.

In evaluation a batch norm is y = gamma (x + bias - mean) / sqrt(var + epsilon) + beta: a scale and
an offset. Folded, gamma and beta are these, mean and bias are 0 and var is 1, which take hardly a
byte. The network is the same in evaluation, but for rounding; in training a batch norm has the
statistics of the batch in place of those, so that its outputs would be of other sizes than before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..model import Array, Model, Parameter

_FOLDED_VARIANCE = 1.0
_WIDE = (np.dtype(np.float32), np.dtype(np.float64))
"""Types in which what is folded loses nothing that would be seen beside quantization."""


@dataclass(frozen=True, slots=True)
class FoldableNorm:
    """A batch norm that runs with its statistics in evaluation.

    Attributes:
        scale, offset, mean, variance: names of its vectors, gamma and beta the first two.
        epsilon: what it adds to the variance.
        bias: the vector that is added to what the norm alone takes; None: there is none.
        scale_sensitivity: the squared gradients of the scale when it is folded, in the mean over
            its elements and over samples.
    """

    scale: str
    offset: str
    mean: str
    variance: str
    epsilon: float
    bias: str | None
    scale_sensitivity: float

    @property
    def emptied(self) -> tuple[str, ...]:
        """Names of the vectors that say nothing any more."""
        return (self.mean, self.variance, *((self.bias,) if self.bias is not None else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all its vectors."""
        return (self.scale, self.offset, *self.emptied)

    def folded(self, vectors: Mapping[str, Array]) -> dict[str, Array] | None:
        """Return its vectors when it is folded, by name, of the types that they have.

        None if they cannot be: of other types than float32 and float64, of different lengths, or
        one and the same; or if variances are not above -epsilon, or what they become is not finite.
        """
        if len(set(self.names)) < len(self.names):
            return None
        arrays = [vectors[name] for name in self.names]
        if any(a.dtype not in _WIDE or a.shape != arrays[0].shape or a.ndim != 1 for a in arrays):
            return None
        scale, offset, mean, variance, *bias = (array.astype(np.float64) for array in arrays)
        with np.errstate(all="ignore"):
            slope = scale / np.sqrt(variance + self.epsilon)
            offset = offset + slope * (sum(bias) - mean)
            found = {
                self.scale: slope * np.sqrt(_FOLDED_VARIANCE + self.epsilon),
                self.offset: offset,
                **dict.fromkeys(self.emptied, np.zeros_like(mean)),
                self.variance: np.full_like(variance, _FOLDED_VARIANCE),
            }
            typed = {name: values.astype(vectors[name].dtype) for name, values in found.items()}
        return typed if all(np.isfinite(values).all() for values in typed.values()) else None


def fold_norms(
    model: Model, norms: Iterable[FoldableNorm], may_change: Callable[[Parameter], bool]
) -> tuple[Model, tuple[FoldableNorm, ...]]:
    """Return a model whose batch norms are folded, and those that are.

    Args:
        model: the model, which stays open.
        norms: of its network. One stays as it is if the model lacks any of its vectors, if any is
            tied, if it cannot be folded, or if a vector has to stay as it is.
        may_change: whether a vector may have other values.
    """
    tied = {parameter.tied_to for parameter in model.values()}
    changed: dict[str, Parameter] = {}
    folded = []
    for norm in norms:
        parameters = [model[name] for name in norm.names if name in model]
        is_own = not any(p.tied_to or p.name in tied or p.name in changed for p in parameters)
        if len(parameters) < len(norm.names) or not is_own or not all(map(may_change, parameters)):
            continue
        arrays = norm.folded({parameter.name: parameter.read() for parameter in parameters})
        if arrays is not None:
            folded.append(norm)
            changed |= {n: Parameter.from_array(n, values) for n, values in arrays.items()}
    if not folded:
        return model, ()
    return model.with_parameters(changed.get(p.name, p) for p in model.values()), tuple(folded)
