"""Training for low rank (Lee et al., arXiv 1905.10145). Needs the extra `torch`.

The full network is trained, and now and then each kernel is replaced by its low-rank
reconstruction:

    projection = LowRankProjection(module, ranks_at_ratio(module, 3))
    fine_tune(module, optimizer, batches, loss, steps=2000, after_step=projection.step)
    factored = projection.project()

The network is worth evaluating right after a replacement only: `projection.is_projected` tells.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..decompose.algorithms.kernel import checked_ranks, checked_weight
from ..decompose.algorithms.svd import low_rank, truncated_svd
from ..decompose.algorithms.tucker import tucker2
from ..decompose.ranks.rank_options import rank_of_fraction
from ..errors import InvalidOptions
from ..factorization.forms import FactoredWeight, LowRank, Tucker2
from ..model import Array
from ..user.module import weight_layers

if TYPE_CHECKING:
    import torch

Ranks = int | tuple[int, int]
"""The rank of an SVD, or the two of Tucker-2: (outputs, inputs)."""

EVERY = 200  # mini-batches between replacements, as in the paper
NO_TILES = (1, 1)


class LowRankProjection:
    """Replaces kernels of a module by their low-rank reconstructions, in place.

    Attributes:
        ranks: by the kernels' names.
        tiles: into how many rows and columns of tiles a kernel's matrix is cut before its SVD.
        every: steps between replacements.
        is_projected: whether the kernels are as the last replacement left them.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        ranks: Mapping[str, Ranks],
        *,
        every: int = EVERY,
        tiles: tuple[int, int] = NO_TILES,
    ) -> None:
        """Remember what to do; nothing is replaced yet.

        Args:
            module: whose parameters are replaced.
            ranks: by the name of a parameter of two and more dimensions: one rank for the SVD of
                its matrix shape[0] x the rest, two for Tucker-2, which is for convolutions.
            every: steps of the optimizer between two replacements; 100 to 5000 in the paper, whose
                training is long.
            tiles: with more than one tile, each is replaced by an SVD of the given rank;
                Tucker-2 has none. Such a kernel has no factored form.

        Raises:
            InvalidOptions: `ranks` name a parameter that there is not, or are impossible for its
                shape; `every` or `tiles` is less than 1.
        """
        if every < 1:
            raise InvalidOptions("every", f"{every} is less than 1")
        if min(tiles) < 1:
            raise InvalidOptions("tiles", f"{tiles} is less than 1")
        self.ranks = {name: _whole_numbers(name, rank) for name, rank in ranks.items()}
        self.tiles = tiles
        self.every = every
        self.is_projected = False
        self._steps = 0
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for name, rank in self.ranks.items():
            if name not in parameters:
                raise InvalidOptions("ranks", f"the module has no parameter {name!r}")
            _check(name, tuple(parameters[name].shape), rank, tiles)
        self._kernels = {name: parameters[name] for name in self.ranks}

    def step(self) -> None:
        """Count a step of the optimizer, and replace the kernels after every `every`-th.

        Raises: as :meth:`project`.
        """
        self._steps += 1
        self.is_projected = False
        if self._steps % self.every == 0:
            self.project()

    def project(self) -> dict[str, FactoredWeight]:
        """Replace the kernels now; return their factors by name, but for those in tiles.

        Raises:
            InvalidModel: a kernel is not finite, or is 0 everywhere; those before it are replaced.
        """
        import torch

        factored: dict[str, FactoredWeight] = {}
        with torch.no_grad():
            for name, kernel in self._kernels.items():
                weight = kernel.detach().cpu().double().numpy()
                rank = self.ranks[name]
                if not isinstance(rank, int):
                    factored[name] = tucker2(weight, rank, name=name)
                elif self.tiles == NO_TILES:
                    factored[name] = low_rank(weight, rank, name=name)
                else:
                    kernel.copy_(torch.from_numpy(_tiled(weight, rank, self.tiles, name)))
                    continue
                kernel.copy_(torch.from_numpy(factored[name].to_dense()))
        self.is_projected = True
        return factored


def ranks_at_ratio(
    module: torch.nn.Module,
    ratio: float,
    *,
    form: Literal["tucker2", "lr"] = "tucker2",
    tiles: tuple[int, int] = NO_TILES,
    only: Container[str] | None = None,
) -> dict[str, Ranks]:
    """Return ranks at which each layer has `ratio` times fewer parameters, or a bit more.

    The first layer, convolutions with groups and transposed ones, and layers that have no fewer
    parameters at rank 1 are left out. Tucker-2 keeps the same share of outputs and inputs; linear
    layers and 1x1 convolutions get an SVD in any case.

    Args:
        module: what is to be decomposed.
        ratio: parameters of a layer before over after.
        form: of convolutions with several taps.
        tiles: as those of the projection.
        only: the names of the weights to give ranks; all by default. A classifier of few classes
            is better left out: it soon has a rank that cannot tell them apart.

    Raises:
        InvalidOptions: `ratio` is no finite number above 1, or there is no such form.
    """
    if not 1 < ratio < math.inf:
        raise InvalidOptions("ratio", f"{ratio} is no finite number above 1")
    if form not in ("tucker2", "lr"):
        raise InvalidOptions("form", f"{form!r} is neither 'tucker2' nor 'lr'")
    ranks: dict[str, Ranks] = {}
    for layer, name in list(weight_layers(module).items())[1:]:
        weight: Any = layer.weight
        shape = tuple(weight.shape)
        left_out = only is not None and name not in only
        if left_out or getattr(layer, "groups", 1) > 1 or getattr(layer, "transposed", False):
            continue
        rank = _ranks_of_fraction(name, shape, 1 / ratio, form, tiles)
        if _parameters(shape, rank, tiles) < math.prod(shape):
            ranks[name] = rank
    return ranks


def _whole_numbers(name: str, rank: Any) -> Ranks:
    """Return one rank as int and several as a tuple, whatever kinds of whole numbers they are.

    Raises:
        InvalidOptions: they are none.
    """
    try:
        if np.ndim(rank) == 0:
            return operator.index(rank)
        outputs, inputs = map(operator.index, rank)
    except (TypeError, ValueError):
        raise InvalidOptions("rank", f"{name!r}: {rank!r} is neither a rank nor two") from None
    return outputs, inputs


def _check(name: str, shape: tuple[int, ...], rank: Ranks, tiles: tuple[int, int]) -> None:
    """Refuse ranks that a kernel of `shape` cannot have."""
    if not isinstance(rank, int):
        checked_ranks(Tucker2, shape, rank, name)
        return
    checked_ranks(LowRank, shape, (rank,), name)
    rows, columns = shape[0] // tiles[0], math.prod(shape[1:]) // tiles[1]
    if rank > min(rows, columns):
        raise InvalidOptions("rank", f"{name!r}: rank {rank}, and tiles of {rows} x {columns}")


def _parameters(shape: tuple[int, ...], rank: Ranks, tiles: tuple[int, int]) -> int:
    """Return how many parameters a kernel has at `rank`."""
    if not isinstance(rank, int):
        return Tucker2.parameters(shape, rank)
    return rank * (shape[0] * tiles[1] + math.prod(shape[1:]) * tiles[0])


def _ranks_of_fraction(
    name: str, shape: tuple[int, ...], fraction: float, form: str, tiles: tuple[int, int]
) -> Ranks:
    """Return the highest ranks that keep at most `fraction` of a kernel's parameters, or 1."""
    if form == "tucker2" and math.prod(shape[2:]) > 1:
        return _proportional_ranks(shape, fraction)
    if tiles == NO_TILES:
        return rank_of_fraction(LowRank, shape, fraction, name)
    return max(1, math.floor(fraction * math.prod(shape) / _parameters(shape, 1, tiles)))


def _proportional_ranks(shape: tuple[int, ...], fraction: float) -> tuple[int, int]:
    """Return Tucker-2's ranks (a·T, a·S), rounded down, that keep `fraction` of the parameters.

    They solve a²·T·S·taps + a·(T² + S²) = fraction·T·S·taps. Unlike ranks of equal energy they do
    not follow the weights, which training is about to change.
    """
    outputs, inputs = shape[:2]
    kernel, bases = math.prod(shape), outputs**2 + inputs**2
    share = (math.sqrt(bases**2 + 4 * fraction * kernel**2) - bases) / (2 * kernel)
    return max(1, math.floor(share * outputs)), max(1, math.floor(share * inputs))


def _tiled(weight: Array, rank: int, tiles: tuple[int, int], name: str) -> Array:
    """Return `weight`, float32, each tile of its matrix replaced by a truncated SVD of it."""
    matrix = checked_weight(weight, LowRank, name).reshape(weight.shape[0], -1)
    bands = []
    for band in np.array_split(matrix, tiles[0], axis=0):
        parts = np.array_split(band, tiles[1], axis=1)
        svds = [truncated_svd(part, rank) for part in parts]
        bands.append([(left * singular) @ right for left, singular, right in svds])
    return np.block(bands).reshape(weight.shape).astype(np.float32)
