"""What is done to a quantized network after quantization, where it helps on samples held back.

Needs the extra `torch`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..calibration.divergence import OutputDivergence
from ..calibration.held_back import HoldBack
from ..calibration.outputs import Outputs
from ..calibration.perturbation import perturbed
from ..encoding.corrections.corrected_stream import Proposal
from ..errors import InvalidModel, NnrError
from ..model import Array, Model
from ..options import EncodeOptions
from ..user.code import in_a_line
from ..user.module import as_it_was, inputs_of, sample_count, tensors_like
from .channel_matching import match_channels
from .distillation import Tensors, distill
from .quantized_past import Quantize, moved_weights

if TYPE_CHECKING:
    import torch

_SEED = 0

_MATCHED_SAMPLES = 512
"""From which channels get their statistics; more of them tell hardly more."""

_SHARES = 1.0, 0.5
"""Of the way to the original network's statistics, of which the better one is gone."""


_OF_OTHERS = (NnrError, OSError, MemoryError, BrokenExecutor)
"""Errors that say nothing of how the module can be run."""

_NO_MEASURE = "the network is not corrected, as it does not run on samples that are held back"
_NO_PERTURBED = "moved weights are not judged by perturbed samples"
_Result = TypeVar("_Result")


class Corrections:
    """Corrects the tensors of a stream, by samples, such that outputs diverge less.

    Weights make up for what quantization did to the layers before them (:mod:`.quantized_past`).
    The channels' means and deviations become those of the original network
    (:mod:`.channel_matching`); if it is wanted, vectors then learn from the original network's
    outputs (:mod:`.distillation`). Either is kept only if a quarter of the samples, which it does
    not see, says that it helps. For weights, and what is learned, these samples are perturbed as
    well, since a network is surer of what it was trained on than of anything else.

    Attributes:
        notes: what could not be done, and why.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        batches: Sequence[Any],
        *,
        match: bool = True,
        move: bool = True,
        tune: bool = False,
        outputs: Outputs | None = None,
        perturb: Callable[[Any, torch.Generator], Any] | None = None,
    ) -> None:
        """Hold some of the samples back.

        Args:
            module: the original network, which has its own tensors whenever this is called.
            batches: inputs, or pairs (inputs, targets). With fewer than four samples nothing is
                corrected.
            match: whether channels get the statistics of the original network.
            move: whether weights make up for what quantization did to the layers before them.
            tune: whether vectors learn.
            outputs, perturb: as of :class:`~nnr_codec.calibration.gradients.OutputGradients`.
        """
        self._module = module
        self._match = match
        self._move = move
        self._tune = tune
        self._outputs = outputs
        self._perturb = perturb or perturbed
        self.notes: list[str] = []
        self._failed: set[str] = set()
        held = HoldBack(batches)
        self._batches = list(held)
        self._held = held.batches

    @classmethod
    def by_options(
        cls,
        options: EncodeOptions,
        module: torch.nn.Module,
        batches: Sequence[Any],
        settings: Mapping[str, Any] | None = None,
    ) -> Corrections:
        """Return the corrections that the encoder's options want.

        `settings`: of the user's, `outputs` and `perturb` among them.
        """
        used = {name: (settings or {}).get(name) for name in ("outputs", "perturb")}
        return cls(
            module, batches, match=options.correct, move=options.correct, tune=options.tune, **used
        )

    def without_moving(self) -> Corrections:
        """Return the same with weights that stay as they are."""
        other = copy.copy(self)
        other._move = False
        other.notes, other._failed = [], set(self._failed)
        return other

    def move(
        self,
        decode: Callable[[], Mapping[str, Array]],
        names: Collection[str],
        quantize: Quantize,
    ) -> dict[str, Array]:
        """Return what weights should be before they are quantized; none if that cannot be said.

        Args:
            decode: returns what a stream decodes to, by name.
            names: of the weights that may be moved.
            quantize: returns what decoders have of a weight with other values.

        Raises what `quantize` raises.
        """
        if not self._move or not self._held:
            return {}
        work = partial(moved_weights, self._module, decode, names, quantize, self._batches)
        return self._attempted("weights are not moved by what is quantized before them", work, {})

    def _attempted(self, without: str, work: Callable[[], _Result], failed: _Result) -> _Result:
        """Return what `work` returns; if running the module in its way fails, as of one that cannot
        be copied, note `without` once, and return `failed` from then on."""
        if without in self._failed:
            return failed
        try:
            with as_it_was(self._module):
                return work()
        except _OF_OTHERS:
            raise
        except Exception as error:
            self._failed.add(without)
            self.notes.append(f"{without}: {in_a_line(error)}")
            return failed

    def divergence(self, tensors: Mapping[str, Array], *, perturbed: bool = False) -> float:
        """Return the divergence of the outputs with these tensors, on samples that are held back;
        infinite, if there are too few samples to hold any back, or it does not run on these.

        `perturbed`: on these perturbed, if the network can take them: of images that a network was
        trained on, few tell most of the divergence.

        Raises what :class:`OutputDivergence` raises.
        """
        if not self._held:
            return math.inf
        if perturbed:
            without, measure = _NO_PERTURBED, lambda: self._perturbed_measure(tensors)
        else:
            without, measure = _NO_MEASURE, lambda: self._measure(tensors)
        return self._attempted(without, measure, math.inf)

    @cached_property
    def _measure(self) -> OutputDivergence:
        return OutputDivergence(self._module, self._held, outputs=self._outputs)

    @cached_property
    def _perturbed_measure(self) -> OutputDivergence:
        """That on these samples perturbed, if the network can take these."""
        try:
            return OutputDivergence(self._module, self._perturbed(), outputs=self._outputs)
        except InvalidModel:  # outputs that are not finite
            return self._measure

    @cached_property
    def _wider_measure(self) -> OutputDivergence:
        """That on these samples as they are, and perturbed, if the network can take these."""
        batches = [*self._held, *self._perturbed()]
        try:
            return OutputDivergence(self._module, batches, outputs=self._outputs)
        except InvalidModel:  # outputs that are not finite
            return self._measure

    def _perturbed(self) -> list[Any]:
        """Return the samples that are held back, perturbed."""
        import torch

        generator = torch.Generator().manual_seed(_SEED)
        return [(self._perturb(inputs_of(batch), generator), *_rest(batch)) for batch in self._held]

    def propose(self, tensors: Mapping[str, Array], names: Collection[str]) -> Proposal | None:
        """Return corrected vectors; None if there is nothing that helps.

        Args:
            tensors: what a stream decodes to, by name.
            names: of the vectors that may be changed.

        Raises what measuring the divergence raises.
        """
        if not self._held or not self._batches:
            return None
        try:
            before = self.divergence(tensors)
        except InvalidModel:  # outputs that are not finite: nothing can be judged
            return None
        if not 0 < before < math.inf:
            return None
        return self._proposal(tensors, names, before)

    def _proposal(
        self, tensors: Mapping[str, Array], names: Collection[str], before: float
    ) -> Proposal | None:
        state = tensors_like(self._module, Model.from_arrays(tensors))
        found: Tensors = {}
        methods: list[str] = []

        if self._match:
            matched = self._matched(state, names)
            parts = [_part_way(state, matched, share) for share in _SHARES if matched]
            losses = [self._measure({**tensors, **_arrays(part, tensors)}) for part in parts]
            if losses and min(losses) < before:
                found = parts[losses.index(min(losses))]
                methods.append("channels")
        if self._tune:
            tuned = self._tuned(tensors, {**state, **found}, names)
            if tuned:
                found = {**found, **tuned}
                methods.append("tuned")
        if not found:
            return None
        return Proposal(_arrays(found, tensors), tuple(methods), before)

    def _matched(self, state: Tensors, names: Collection[str]) -> Tensors:
        """Return vectors with the statistics of the original network, none if that fails."""
        batches = _first(self._batches, _MATCHED_SAMPLES)
        work = partial(match_channels, self._module, state, names, batches)
        return self._attempted("statistics of channels are not corrected", work, {})

    def _tuned(
        self, tensors: Mapping[str, Array], state: Tensors, names: Collection[str]
    ) -> Tensors:
        """Return vectors that have learned; `state`: the tensors as they are corrected so far."""

        def judge(vectors: Tensors) -> float:
            merged = {**state, **vectors}
            changed = {name: merged[name] for name in names if name in merged}
            return self._wider_measure({**tensors, **_arrays(changed, tensors)})

        work = partial(
            distill,
            self._module,
            state,
            names,
            self._batches,
            judge,
            outputs=self._outputs,
            perturb=self._perturb,
        )
        return self._attempted("vectors are not tuned", work, {})


def _first(batches: Sequence[Any], samples: int) -> Iterator[Any]:
    """Yield batches until they have so many samples."""
    for batch in batches:
        if samples <= 0:
            return
        samples -= sample_count(inputs_of(batch))
        yield batch


def _part_way(start: Tensors, end: Tensors, share: float) -> Tensors:
    """Return vectors on a part of the way from those of `start` to those of `end`."""
    return {
        name: (start[name] + share * (values - start[name])).to(values)
        for name, values in end.items()
    }


def _rest(batch: Any) -> tuple[Any, ...]:
    """Return what a batch has beside its inputs."""
    return tuple(batch[1:]) if isinstance(batch, tuple | list) else ()


def _arrays(vectors: Tensors, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return vectors as arrays of the types that decoding gives."""
    return {
        name: values.detach().cpu().double().numpy().astype(tensors[name].dtype)
        for name, values in vectors.items()
    }
