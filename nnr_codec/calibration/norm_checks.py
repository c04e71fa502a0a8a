"""Whether a network does the same with batch norms folded: it is run both ways, and compared.

What a norm's layer does says nothing of what else a module does with its vectors, or with what goes
into it. Needs the extra `torch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..model import Array
from ..user.module import apply, evaluating
from .foldable_norms import FoldableNorm

if TYPE_CHECKING:
    import torch

_OF_CHANNEL = 1e-3
_OF_TENSOR = 1e-5
"""Parts of the largest value of a channel, and of all, by which rounding may move an output."""

Norms = tuple[FoldableNorm, ...]


class NormChecks:
    """Runs a module on a few batches, folded and not."""

    def __init__(self, module: torch.nn.Module) -> None:
        """`module`: whose state dict names the vectors; after each run it has its own again."""
        self._module = module
        self._inputs: list[Any] = []
        self._seen = 0

    def see(self, inputs: Any) -> None:
        """Take note of a batch's inputs: those of the first, the second, the fourth, and so on are
        checked with."""
        self._seen += 1
        if self._seen & (self._seen - 1) == 0:
            self._inputs.append(inputs)

    def kept(self, pairs: Sequence[tuple[FoldableNorm, FoldableNorm]]) -> Norms:
        """Return the norms with which, folded, all outputs are the same, in their order.

        Args:
            pairs: each norm with the bias before it, if that may go into its offset, and without.
        """
        of_scale = {norm.scale: norm for norm in _largest([pair[0] for pair in pairs], self._same)}
        others = [plain for norm, plain in pairs if norm.scale not in of_scale and norm != plain]
        found = tuple(of_scale.values())
        more = _largest(others, lambda norms: self._same((*found, *norms)))
        of_scale |= {norm.scale: norm for norm in more}
        return tuple(of_scale[norm.scale] for norm, _ in pairs if norm.scale in of_scale)

    def _same(self, norms: Norms) -> bool:
        state = self._module.state_dict()
        vectors: dict[str, Array] = {}
        for norm in norms:
            own = {name: state[name].detach().float().cpu().numpy() for name in norm.names}
            vectors |= norm.folded(own) or {}
        return all(self._same_outputs(inputs, vectors) for inputs in self._inputs)

    def _same_outputs(self, inputs: Any, vectors: Mapping[str, Array]) -> bool:
        with evaluating(self._module):
            # A module may return its own vectors, which are others in the block.
            expected = [tensor.clone() for tensor in _tensors(apply(self._module, inputs))]
            with _having(self._module, vectors):
                found = [tensor.clone() for tensor in _tensors(apply(self._module, inputs))]
        if len(expected) != len(found) or not any(bool(tensor.any()) for tensor in expected):
            return False  # or nothing can be seen
        return all(map(_alike, expected, found))


def _largest(norms: Sequence[FoldableNorm], is_right: Callable[[Norms], bool]) -> Norms:
    """Return all norms, if these are right together, or else those that are of either half."""
    whole = tuple(norms)
    if not whole or is_right(whole):
        return whole
    if len(whole) == 1:
        return ()
    half = len(whole) // 2
    kept = (*_largest(whole[:half], is_right), *_largest(whole[half:], is_right))
    return kept if not kept or is_right(kept) else ()


@contextmanager
def _having(module: torch.nn.Module, vectors: Mapping[str, Array]) -> Iterator[None]:
    """Let a module have other vectors in the block."""
    import torch

    state = module.state_dict()
    own = {name: state[name].clone() for name in vectors}
    try:
        for name, values in vectors.items():
            state[name].copy_(torch.from_numpy(values))
        yield
    finally:
        for name, tensor in own.items():
            state[name].copy_(tensor)


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in what a module returns, in containers of any depth."""
    import torch

    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, Mapping):
        for part in result.values():
            yield from _tensors(part)
    elif isinstance(result, Iterable) and not isinstance(result, str | bytes):
        for part in result:
            yield from _tensors(part)


def _alike(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether values agree but for rounding: in each channel, the second or last dimension."""
    if expected.shape != found.shape:
        return False
    if not expected.is_floating_point():
        return bool((expected == found).all())
    if not expected.numel():
        return True
    expected, difference = expected.double(), (found - expected).double().abs()
    least = _OF_TENSOR * float(expected.abs().max())
    for dimension in {min(1, expected.dim() - 1), expected.dim() - 1}:
        channels, errors = (
            values.reshape(-1, 1) if values.dim() < 2 else values.movedim(dimension, 0).flatten(1)
            for values in (expected.abs(), difference)
        )
        if not bool((errors.amax(1) <= _OF_CHANNEL * channels.amax(1) + least).all()):
            return False  # NaN is not less
    return True
