"""Weights moved by what the quantized layers before them do to their inputs. Needs `torch`.

A layer of a quantized network sees inputs y in place of x. Of all weights it is
W + W E[(x - y) yᵀ] E[y yᵀ]⁻¹ with which its outputs are nearest to those of the original network
(WaterSIC, arXiv 2603.04956). Layer by layer, in the order in which they run, weights
are moved there, and quantized, before the next layer is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..calibration.held_back import samples_of
from ..calibration.unfolding import windows
from ..model import Array, Float64, Model
from ..support.blas_threads import on_one_blas_thread
from ..support.pieces import pieces
from ..user.module import independent_copy, inputs_of, load_state, sample_count
from .side_by_side import Arrival, layers_called_once, meetings

if TYPE_CHECKING:
    import torch

Quantize = Callable[[str, Array], Array]
"""Returns what decoders have of a weight that is to have these values; raises InvalidModel."""

_MOST_SAMPLES = 512
_MOST_BATCHES = 64
_MOST_BYTES = 1 << 29
"""Of what the networks have in memory, about, as all samples run side by side."""

_IN_MEMORY = 4
"""Inputs and outputs of the largest layer that are in memory in the worst case, of both."""

_VECTORS = 1 << 14
_VECTORS_PER_VALUE = 16
"""That the moments of a layer are of: so many, or so many for each value of an input."""

_PIECE_BYTES = 1 << 25
"""Of vectors that are multiplied together, and of rows of a weight that are moved together."""

_MOMENT_BYTES = 1 << 29
"""Of a layer's moments; a larger one stays as it is."""

_DAMPING = 0.01
"""Of the mean diagonal, added to the diagonal."""

_SEED = 0
Float32 = npt.NDArray[np.float32]
Places = tuple[npt.NDArray[np.intp], ...]


def moved_weights(
    module: torch.nn.Module,
    decode: Callable[[], Mapping[str, Array]],
    names: Collection[str],
    quantize: Quantize,
    batches: Sequence[Any],
) -> dict[str, Array]:
    """Return the values that weights should have before they are quantized.

    By two halves of the samples: how far a weight is to go in the direction that one half gives,
    the other half tells. Layers that run more than once, transposed convolutions, and layers of
    more than some thousand inputs stay as they are.

    Args:
        module: the original network.
        decode: returns the tensors of the quantized one, by their names in the state dict, which
            are as large as the model and not kept.
        names: of the weights that may be moved.
        quantize: called with each weight that is moved, in the order of their layers.
        batches: inputs, or pairs (inputs, targets).

    Returns:
        The weights that are moved, by name, of the types of those tensors.

    Raises what running the module raises.
    """
    if not batches:
        return {}
    inputs = [inputs_of(batch) for batch in batches]
    called, most = layers_called_once(module, inputs[0])
    inputs = _within(inputs, most / sample_count(inputs[0]))
    changed, types = _with_tensors(independent_copy(module), decode())
    own = module.state_dict()
    moved: dict[str, Array] = {}
    generator = np.random.default_rng(_SEED)
    for meeting in meetings(module, changed, inputs, called):
        name, layer = meeting.name, meeting.layer
        if name not in names or not _Moments.are_wanted(layer):
            continue
        halves = _Moments.of_halves(layer, meeting.arrivals, generator)
        target = _target(_array(own[name]), *halves, types[name])
        if target is not None:
            moved[name] = target
            _set_weight(layer, quantize(name, target))
    return moved


def _with_tensors(
    module: torch.nn.Module, tensors: Mapping[str, Array]
) -> tuple[torch.nn.Module, dict[str, np.dtype[Any]]]:
    """Return a module with these tensors, and their types."""
    load_state(module, Model.from_arrays(tensors))
    return module, {name: values.dtype for name, values in tensors.items()}


def _within(inputs: Sequence[Any], sample_bytes: float) -> list[Any]:
    """Return the first inputs, as many as memory allows, of which each takes so much at the largest
    layer."""
    allowed = max(_MOST_BYTES / (_IN_MEMORY * max(sample_bytes, 1)), 1)
    left = int(min(allowed, _MOST_SAMPLES))
    kept: list[Any] = []
    for batch in inputs[:_MOST_BATCHES]:
        count = sample_count(batch)
        if count > left:
            batch = samples_of(batch, list(range(left)), count)
        if left:
            kept.append(batch)
        left -= min(count, left)
    return kept


def _array(weight: torch.Tensor) -> Array:
    """Return the values of a weight, of two bytes as float32."""
    values = weight.detach().cpu()
    array: Array = (values if values.element_size() >= 4 else values.float()).numpy()
    return array


def _set_weight(layer: Any, values: Array) -> None:
    import torch

    with torch.no_grad():
        plain = values if values.dtype.itemsize >= 4 else values.astype(np.float32)
        layer.weight.copy_(torch.from_numpy(plain).reshape(layer.weight.shape))


class _Moments:
    """Sums over so many vectors: of y yᵀ, and of (x - y) yᵀ; float64, (groups, width, width)."""

    def __init__(self, groups: int, width: int) -> None:
        self.own = np.zeros((groups, width, width))
        self.cross = np.zeros((groups, width, width))
        self.count = 0

    @staticmethod
    def are_wanted(layer: Any) -> bool:
        """Whether a layer's rows are those that are coded, and its moments are not too large."""
        entries = getattr(layer, "groups", 1) * layer.weight[0].numel() ** 2
        size = 4 * np.dtype(np.float64).itemsize * entries  # of both halves
        return not getattr(layer, "transposed", False) and size <= _MOMENT_BYTES

    @classmethod
    @on_one_blas_thread
    def of_halves(
        cls, layer: Any, arrivals: Sequence[Arrival], generator: np.random.Generator
    ) -> tuple[_Moments, _Moments]:
        """Return those of the first and the second half of each batch."""
        groups = getattr(layer, "groups", 1)
        width = layer.weight[0].numel()
        halves = cls(groups, width), cls(groups, width)
        samples = [len(arrival.inputs) for arrival in arrivals]
        for arrival, count in zip(arrivals, samples, strict=True):
            most = max(_VECTORS, _VECTORS_PER_VALUE * width)
            wanted = -(-most * count // sum(samples))
            original, changed = (
                _rows(layer, inputs.detach().cpu(), arrival.output)
                for inputs in (arrival.inputs, arrival.changed)
            )
            dimensions = original.shape[: original.dim() - layer.weight.dim() + 1]
            is_behind = halves[0].count < halves[1].count
            parts = _places(dimensions, wanted, generator, is_behind=is_behind)
            for half, places in zip(halves, parts, strict=True):
                half.add(original, changed, places)
        return halves

    def add(self, original: torch.Tensor, changed: torch.Tensor, places: Places) -> None:
        """Add vectors at some places of a layer's inputs."""
        groups, width = self.own.shape[:2]
        self.count += len(places[0])
        for some in pieces(len(places[0]), _PIECE_BYTES // (4 * groups * width)):
            part = tuple(index[some] for index in places)
            x, y = (_chosen(rows, part, groups) for rows in (original, changed))
            with np.errstate(over="ignore", invalid="ignore"):  # sums are looked at later
                self.own += y.swapaxes(1, 2) @ y
                self.cross += (x - y).swapaxes(1, 2) @ y

    def plus(self, other: _Moments) -> _Moments:
        """Return the sums of both."""
        both = _Moments(*self.own.shape[:2])
        both.own, both.cross = self.own + other.own, self.cross + other.cross
        return both

    def shifter(self) -> Callable[[Float64], Float64]:
        """Return what gives, for rows of a weight, (groups, rows, width), what is added to them for
        the least error."""
        from scipy.linalg import lu_factor, lu_solve  # which decoders do without

        width = self.own.shape[-1]
        damping = _DAMPING * np.trace(self.own, axis1=1, axis2=2).mean() / width
        factors = [lu_factor(own + damping * np.eye(width)) for own in self.own]

        def shift(weight: Float64) -> Float64:
            found = np.empty_like(weight)
            for group, part in enumerate(weight):
                found[group] = lu_solve(factors[group], (part @ self.cross[group]).T).T
            return found

        return shift


@on_one_blas_thread
def _target(weight: Array, first: _Moments, second: _Moments, dtype: np.dtype[Any]) -> Array | None:
    """Return a moved weight, of this type; None if that helps nothing, or cannot be said."""
    groups, width = first.own.shape[:2]
    matrices = weight.reshape(groups, -1, width)
    sums = [first.own, first.cross, second.own, second.cross]
    is_seen = first.own.any() and second.own.any()
    if not is_seen or not all(np.isfinite(array).all() for array in sums):
        return None
    by_rows = list(pieces(matrices.shape[1], _PIECE_BYTES // (8 * groups * width)))
    gain = cost = 0.0
    for one, other in ((first, second), (second, first)):
        shift_of = one.shifter()
        for rows in by_rows:
            part = matrices[:, rows].astype(np.float64)
            shift = shift_of(part)
            gain += float(((part @ other.cross) * shift).sum())
            cost += float(((shift @ other.own) * shift).sum())
    if not gain > 0 or not cost > 0:
        return None
    share = gain / cost
    share = min(2 * share / (1 + share), 1.0)  # of both halves: the noise is half as large
    moved, shift_of = np.empty(matrices.shape, dtype), first.plus(second).shifter()
    for rows in by_rows:
        part = matrices[:, rows].astype(np.float64)
        moved[:, rows] = part + share * shift_of(part)
    return moved.reshape(weight.shape)


def _rows(layer: Any, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return a view of what the rows of the weight are multiplied by: (samples, positions ...,
    channels, taps ...)."""
    seen = windows(layer, inputs, output)
    taps = layer.weight.dim() - 2
    return seen.permute(0, *range(2 + taps, seen.dim()), *range(1, 2 + taps))


def _places(
    dimensions: Sequence[int], wanted: int, generator: np.random.Generator, *, is_behind: bool
) -> list[Places]:
    """Return at most so many places by chance, those of the first half of samples, and of the
    second; an odd one is the second's, unless the first half `is_behind`."""
    count = int(np.prod(dimensions))
    places = np.arange(count)
    if wanted < count:
        places = np.sort(generator.choice(count, wanted, replace=False))
    middle = (count + is_behind) // 2
    parts = places[places < middle], places[places >= middle]
    return [np.unravel_index(part, tuple(dimensions)) for part in parts]


def _chosen(rows: torch.Tensor, places: Places, groups: int) -> Float32:
    """Return (groups, places, width)."""
    import torch

    found = rows[tuple(torch.from_numpy(part) for part in places)].float()
    by_group = found.reshape(len(found), groups, -1).numpy()
    return np.ascontiguousarray(by_group.swapaxes(0, 1))
