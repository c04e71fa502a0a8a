"""Passes over samples, mostly one, that collect the second moments of every layer's input.

Needs the extra `torch`. The module and the batches may be on any device; the moments are added up
on the processor, in float64, with numpy, in the order of the batches: the same samples in the same
batches give the same moments, on the same machine with as many threads.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidModel, InvalidOptions, NnrError
from ..support.listed import listed
from ..user.code import in_a_line
from ..user.module import apply, evaluating, hooked_layers, inputs_of, sample_count, weight_layers
from .gradients import NoGradients, OutputGradients
from .moments import (
    MAX_BYTES,
    Calibration,
    InputMoments,
    RowLayout,
    block_sizes,
    values_digest,
)
from .norm_checks import NormChecks
from .repeated_batches import RepeatedBatches
from .turns import spilled_in_turns
from .unfolding import windows

if TYPE_CHECKING:
    import torch

_LOW_BYTES = 1 << 26
"""Of the moments of small weights that one pass collects, where memory is low."""

_IN_PART = (
    "moments of gradients of {} take too much memory, and are known in part: of columns in blocks, "
    "or not of rows"
)
_INSTEAD = "errors of layers' outputs count, not of the result"
_NO_LAYERS = (
    "the module has no linear layers or convolutions of torch.nn whose inputs can be seen "
    "(is it of torch.jit?): errors are not fed back"
)

_PIECE_BYTES = 1 << 25
"""Of unfolded inputs that are looked at together, in float64, as far as one row allows it."""


def calibrate(
    module: torch.nn.Module,
    batches: Iterable[Any],
    *,
    only: Container[str] | None = None,
    max_bytes: int = MAX_BYTES,
    gradients: OutputGradients | None = None,
    low_memory: bool = False,
) -> Calibration:
    """Run `module` over `batches` and collect E[x xᵀ] of the inputs of its layers.

    Layers are linear ones, and convolutions and transposed convolutions of any number of
    dimensions, with their stride, padding, dilation and groups. x is what the rows of the weight
    are multiplied by for one position of the output (:class:`~.moments.RowLayout`). Layers that are
    called several times, and those whose weights are tied, add up. What a module computes with a
    weight outside of such a layer is not seen (the projections into `MultiheadAttention`, for
    instance).

    The module runs in evaluation mode without gradients, and afterwards each of its parts is in the
    mode in which it was.

    Args:
        module: whose state dict names the weights.
        batches: of samples along the first dimension: inputs, or pairs (inputs, targets). Inputs
            are a tensor, a tuple of the module's arguments, or a dict of those by keyword.
        only: the names of the weights whose moments are wanted; all by default. Quantization needs
            none where there are `gradients`.
        max_bytes: for all moments together. What would take more is reduced to blocks along the
            diagonal, the largest first: :func:`~.moments.block_sizes` has the rule, and
            `Calibration.reduced` the names. Collecting takes one more of the largest, and about
            64 MiB.
        gradients: collects how much the network's result feels errors, in the same pass; in
            about eight at most, if what it may hold at once is too little: then moments are in a
            temporary file. What is too much even so is known in part, and a note of the calibration
            says so. If what the module returns has no gradients, or it cannot be differentiated,
            the moments of all layers' inputs, in that batch and those behind it, are what is known,
            which is noted, too.
        low_memory: collect the moments of gradients weight by weight, in a temporary file: in each
            of several passes those of a few weights, or of a single large one, are in memory. They
            are the same, bit by bit.

    The source of `batches` is gone over once. If there are more passes they are kept: 256 MiB in
    memory, and what is beyond in a temporary file.

    Raises:
        InvalidModel: a layer's input is not finite; or weights are tied whose layers read them
            differently.
        InvalidOptions: there are no batches, or `max_bytes` is less than the diagonals take.
        OSError: a temporary file cannot be written.
    """
    turns = _turns(gradients, low_memory=low_memory)
    repeated = RepeatedBatches(batches) if len(turns) > 1 else batches
    learned = _Pass(module, only, max_bytes, turns)
    for batch in repeated:
        learned.see(batch)
    return learned.calibration(repeated if low_memory or len(turns) > 1 else None)


def _turns(gradients: OutputGradients | None, *, low_memory: bool) -> list[OutputGradients]:
    """Return what collects gradients, one after the other."""
    if gradients is None:
        return []
    if low_memory:
        return gradients.in_turns(_LOW_BYTES)
    return gradients.in_few_turns() if gradients.reduced else [gradients]


class _Pass:
    """What is learned from the batches one after the other: of the gradients of the result, as long
    as there are any, and of inputs.

    `only` and `max_bytes`: as of :func:`calibrate`; `turns`: the first collects in this pass; none,
    if gradients are not wanted.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        only: Container[str] | None,
        max_bytes: int,
        turns: Sequence[OutputGradients],
    ) -> None:
        self._module, self._max_bytes, self._turns = module, max_bytes, turns
        named: dict[Any, str] = weight_layers(module)
        self._named = named
        self._digests = {
            name: values_digest(layer.weight.detach().float().cpu().numpy())
            for layer, name in named.items()
        }
        self._notes = [] if self._named else [_NO_LAYERS]
        self._norms = NormChecks(module)
        self._samples = 0
        self._collect(name for name in self._named.values() if only is None or name in only)

    def _collect(self, names: Iterable[str]) -> None:
        """Collect moments of the inputs of the layers with these weights, from now on."""
        wanted = set(names)
        self._layers = {layer: name for layer, name in self._named.items() if name in wanted}
        self._sums = _sums(self._layers, self._max_bytes)

    def see(self, batch: Any) -> None:
        """Run the module on a batch; raises what :func:`calibrate` raises."""
        inputs = inputs_of(batch)
        if self._turns:
            self._norms.see(inputs)
            if (failure := _gradient_failure(self._turns[0], batch)) is not None:
                self._turns = []
                self._notes.append(f"{failure}: {_INSTEAD}")
                self._collect(self._named.values())
        self._samples += sample_count(inputs)
        if self._layers:
            hooks = {layer: self._sums[name].add for layer, name in self._layers.items()}
            with evaluating(self._module), hooked_layers(hooks):
                apply(self._module, inputs)

    def calibration(self, batches: Iterable[Any] | None) -> Calibration:
        """Return what was learned; with `batches`, of all turns, which go over them again."""
        if not self._samples:
            raise InvalidOptions("calibration", "there are no samples")
        moments = {name: total.mean() for name, total in self._sums.items() if total.positions}
        known = Calibration(
            moments,
            self._samples,
            unused=tuple(name for name in self._sums if name not in moments),
            digests=self._digests,
            notes=tuple(self._notes),
        )
        return self._with_result(known, batches) if self._turns else known

    def _with_result(self, known: Calibration, batches: Iterable[Any] | None) -> Calibration:
        first, samples = self._turns[0], self._samples
        result = first.moments() if batches is None else spilled_in_turns(self._turns, batches)
        reduced = [n for collector in self._turns for n in collector.reduced if n in result]
        notes = (_IN_PART.format(listed(reduced)),) if reduced else ()
        unfelt = tuple(name for name in dict.fromkeys(self._named.values()) if name not in result)
        return replace(
            known,
            unused=known.unused if self._layers else unfelt,
            result=result,
            sensitivities=first.sensitivities(samples),
            outputs=", ".join(sorted(first.kinds)),
            norms=self._norms.kept(first.foldable_norms(samples)),
            notes=(*known.notes, *notes),
        )


def _gradient_failure(collector: OutputGradients, batch: Any) -> str | None:
    """Add a batch; return why that fails, if the module can only be run without gradients."""
    try:
        collector.add(batch)
    except NoGradients:
        return "the module's outputs have no gradients (does it run under torch.no_grad?)"
    except (NnrError, OSError, MemoryError):
        raise
    except Exception as error:
        return f"the module cannot be differentiated ({in_a_line(error)})"
    return None


def _sums(layers: Mapping[Any, str], max_bytes: int) -> dict[str, _Sum]:
    """Return the sums of layers' inputs, by the names of their weights.

    Raises what :func:`calibrate` raises.
    """
    layouts: dict[str, RowLayout] = {}
    for layer, name in layers.items():
        transposed = getattr(layer, "transposed", False)
        layout = RowLayout(tuple(layer.weight.shape), getattr(layer, "groups", 1), transposed)
        if layouts.setdefault(name, layout) != layout:
            raise InvalidModel(name, "is tied to the weight of a layer that reads it differently")
    sizes = block_sizes(layouts, max_bytes)
    return {name: _Sum(name, layout, sizes[name]) for name, layout in layouts.items()}


class _Sum:
    """The sum of x xᵀ for one weight, over all calls of its layers."""

    def __init__(self, name: str, layout: RowLayout, size: int) -> None:
        self.name = name
        self.layout = layout
        self.positions = 0
        self._total = np.zeros((layout.groups * layout.width // size, size, size))

    def add(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Add the input of a layer's call; a hook."""
        import torch

        inputs = args[0] if args else kwargs["input"]
        if not inputs.isfinite().all():
            raise InvalidModel(self.name, "the input of its layer is not finite")
        values = inputs.detach().cpu()
        values = values if values.dtype == torch.float64 else values.float()
        for piece in self._pieces(windows(layer, values, output)):
            x = self._by_block(piece)
            self._total += x @ x.swapaxes(1, 2)  # numpy sees the symmetry and halves the work
            self.positions += x.shape[2]

    def mean(self) -> InputMoments:
        size = self._total.shape[-1]
        blocks = (self._total / self.positions).reshape(self.layout.groups, -1, size, size)
        return InputMoments(self.layout, blocks, self.positions)

    def _by_block(self, piece: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return float64 (blocks of all groups, size, positions)."""
        taps = range(2, 2 + len(self.layout.shape[2:]))
        order = (1, *taps, 0, *range(2 + len(taps), piece.dim()))
        values = piece.numpy()
        if self.layout.transposed:
            values = np.flip(values, tuple(taps))
        values = values.transpose(order)
        unfolded = np.empty(values.shape)
        unfolded[...] = values  # several times as fast as torch copies such a view
        count, size, _ = self._total.shape
        return unfolded.reshape(count, size, -1)

    def _pieces(self, unfolded: Any) -> Iterator[torch.Tensor]:
        """Cut along samples and, if need be, along the first dimension of positions."""
        first = 2 + len(self.layout.shape[2:])
        item = np.dtype(np.float64).itemsize
        sample_bytes = math.prod(unfolded.shape[1:]) * item
        samples = max(1, _PIECE_BYTES // max(1, sample_bytes))
        for part in unfolded.split(samples):
            if unfolded.dim() == first or sample_bytes <= _PIECE_BYTES:
                yield part
            else:
                row_bytes = sample_bytes // unfolded.shape[first]
                yield from part.split(max(1, _PIECE_BYTES // row_bytes), dim=first)
