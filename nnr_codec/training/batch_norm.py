"""Batch norm after training: its running statistics estimated anew, or put into its scale and
offset. Needs the extra `torch`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..calibration.foldable_norms import FoldableNorm
from ..errors import InvalidModel, InvalidOptions
from ..user.module import apply, evaluating, inputs_of, parameter_uses

if TYPE_CHECKING:
    import torch

_FOLDABLE = frozenset({"torch.float32", "torch.float64"})
_VECTORS = ("weight", "bias", "running_mean", "running_var")


def reestimate_batch_norm(module: torch.nn.Module, batches: Iterable[Any]) -> tuple[str, ...]:
    """Set the running means and variances of batch norm to those of `batches`, in place.

    Changed weights shift what batch norm sees; this undoes the shift without any training. One
    pass, in which batch norm works with the statistics of each batch, as in training, and all else
    as in evaluation. The means and the unbiased variances are those of all samples together, added
    up in float64.

    Args:
        module: with layers of `torch.nn.BatchNorm1d`, 2d or 3d that keep running statistics.
        batches: inputs, or pairs (inputs, targets); the larger each, the better.

    Returns:
        Names of the layers that have new statistics; those that did not run keep theirs.

    Raises:
        InvalidModel: what a layer sees is not finite; or a layer was folded when it was encoded
            (``fold_norms``), so that its scale and offset are made for no other statistics.
        InvalidOptions: there are no batches, or one gives a layer fewer than two values of each
            channel.
    """
    import torch

    statistics: dict[Any, _Statistics] = {part: _Statistics(name) for name, part in _norms(module)}
    for part, found in statistics.items():
        if _is_folded(part):
            reason = "is folded: it has no statistics of its own; encode with fold_norms=False"
            raise InvalidModel(found.name, reason)
    ran = False
    with evaluating(module), _batch_statistics(statistics):
        for batch in batches:
            apply(module, inputs_of(batch))
            ran = True
    if not ran:
        raise InvalidOptions("batches", "there are none")
    with torch.no_grad():
        for part, values in statistics.items():
            if values.count:
                part.running_mean.copy_(values.mean)
                part.running_var.copy_(values.squares / (values.count - 1))
    return tuple(values.name for values in statistics.values() if values.count)


def fold_batch_norm(module: torch.nn.Module) -> tuple[str, ...]:
    """Put the running statistics of batch norm into its scale and offset, in place.

    In evaluation the module is the same, but for rounding; its running means are 0 and its running
    variances 1, which take hardly a byte. It is for modules that are trained no more: in training a
    batch norm has the statistics of the batch in place of those. (With a calibration `encode` does
    it by itself.)

    Returns:
        Names of the layers. Those stay as they are that have no scale, share it, are of other types
        than float32 and float64, or have variances that are not above -epsilon.
    """
    import torch

    uses = parameter_uses(module)
    folded = []
    for name, norm in _norms(module):
        vectors = {key: getattr(norm, key) for key in _VECTORS}
        if any(
            v is None or str(v.dtype) not in _FOLDABLE or uses[id(v)] > 1 for v in vectors.values()
        ):
            continue
        arrays = {key: vector.detach().cpu().numpy() for key, vector in vectors.items()}
        scale, offset, mean, variance = _VECTORS
        same = FoldableNorm(scale, offset, mean, variance, norm.eps, None, scale_sensitivity=0.0)
        values = same.folded(arrays)
        if values is not None:
            with torch.no_grad():
                for key, array in values.items():
                    vectors[key].copy_(torch.from_numpy(array))
            folded.append(name)
    return tuple(folded)


def _norms(module: torch.nn.Module) -> list[tuple[str, Any]]:
    """Return the layers of batch norm that keep running statistics, with their names."""
    from torch import nn

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, kinds) and part.running_mean is not None
    ]


def _is_folded(norm: Any) -> bool:
    """Whether a norm's statistics are those of no samples, though its scale is that of training."""
    has_none = not norm.running_mean.any() and bool((norm.running_var == 1).all())
    return has_none and norm.weight is not None and not bool((norm.weight == 1).all())


class _Statistics:
    """Mean and sum of squared deviations of each channel, batch by batch (Chan et al. 1979)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add the input of a layer's call; a hook."""
        inputs = args[0] if args else kwargs["input"]
        values = inputs.detach().double().movedim(1, 0).flatten(1)
        if values.shape[1] < 2:
            reason = f"{self.name!r} gets {values.shape[1]} values of each channel: too few"
            raise InvalidOptions("batches", reason)
        if not values.isfinite().all():
            raise InvalidModel(self.name, "what the layer sees is not finite")
        count, mean = values.shape[1], values.mean(dim=1)
        shift, total = mean - self.mean, self.count + count
        within = (values - mean[:, None]).square().sum(dim=1)
        self.squares = self.squares + within + shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


@contextmanager
def _batch_statistics(statistics: Mapping[Any, _Statistics]) -> Iterator[None]:
    """Let layers of batch norm work with each batch's statistics, and collect these."""
    kept = {layer: (layer.momentum, layer.num_batches_tracked.clone()) for layer in statistics}
    handles = [
        layer.register_forward_pre_hook(values.add, with_kwargs=True)
        for layer, values in statistics.items()
    ]
    try:
        for layer in statistics:
            layer.training = True
            layer.momentum = 0.0  # the running statistics stay as they are
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, (momentum, count) in kept.items():
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(count)
