"""The form with which a layer has the least to do, at a bound of its error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidModel, InvalidOptions
from ..factorization.forms import FactoredWeight
from ..model import Float64
from ..options import DecompositionOptions
from .fitting import decompose_within, values_of
from .forms import forms_of_layer
from .layer_kinds import LayerWeight
from .ranks.error_curve import error_curve
from .timing import times_in_turns

if TYPE_CHECKING:
    import torch

MORE_WORK = "would not have less to do"

_ENERGY = 0.99
"""What is kept of a layer, unless the options say."""

_HOPE = 2.0
"""By how much a form's error may come to be less than expected, in the norm of the output."""

_TIMINGS = 3
"""Of a layer on factors, which is made anew for each: the worst counts, so that no luck does."""

_ROUNDS, _SECONDS = 15, 0.05
"""Of a timing, at least: the dense layer and the one on factors run in turns."""

_TIME_MARGIN = 0.1
"""Of the dense layer's time, that factors must save: by what else the processor does, and where
values lie in memory, later timings differ by some percent."""


class WorkBench:
    """Counts or times layers on the inputs that they get in their module."""

    def __init__(
        self, options: DecompositionOptions, module: torch.nn.Module | None, inputs: Any
    ) -> None:
        """`module` is run once on `inputs`.

        Raises:
            InvalidOptions: one of them is missing, or the module does not run on the inputs.
        """
        if module is None or inputs is None:
            reason = f"{options.objective!r} needs a module and inputs (--module)"
            raise InvalidOptions("objective", reason)
        self._by_time = options.objective == "latency"
        self._runs = _runs(module, inputs)

    @property
    def enough(self) -> float:
        """The share of the dense layer's work below which factors are worth it."""
        return 1 - _TIME_MARGIN if self._by_time else 1.0

    def share(self, weight: LayerWeight, made: FactoredWeight) -> float:
        """Return the work of a layer on factors, over that of the dense one: of MACs, or of time.

        Time is that of the worst of several timings, and differs from one call to the next.

        Raises:
            InvalidModel: the layer did not run, or does not run on these factors.
        """
        from ..layers import factored

        run = self._run(weight)
        try:
            factored(run.layer, made)
        except ValueError as error:
            raise InvalidModel(weight.name, str(error)) from error
        if self._by_time:
            return run.share_of_time(made)
        dense = self.cost(weight)
        return self.cost(weight, made) / dense if dense else math.inf

    def cost(self, weight: LayerWeight, made: FactoredWeight | None = None) -> int:
        """Return multiply-accumulates of a layer: dense, or on factors.

        Raises:
            InvalidModel: the layer did not run.
        """
        return self._run(weight).macs(weight, made)

    def _run(self, weight: LayerWeight) -> _Run:
        if weight.name not in self._runs:
            raise InvalidModel(weight.name, "its layer was not run on the inputs")
        return self._runs[weight.name]


@dataclass
class _Run:
    """What a layer was given, and made of it."""

    layer: Any
    inputs: torch.Tensor
    outputs: torch.Tensor

    def macs(self, weight: LayerWeight, made: FactoredWeight | None) -> int:
        """Count multiply-accumulates, those with the zeros around an image included."""
        taps = len(weight.shape) - 2
        before, after = (_positions(tensor, taps) for tensor in (self.inputs, self.outputs))
        if weight.kind == "transposed":
            after = before
        if made is None:
            return math.prod(weight.shape) * math.prod(after)
        # Of convolutions the samples come first; of linear layers all dimensions are positions.
        first = len(before) - taps if taps else 0
        macs = made.macs(before[first:], after[first:])
        if weight.kind == "grouped":  # each group has the first step of low rank for itself
            macs += (self.layer.groups - 1) * made.factors[1].size * math.prod(after[first:])
        return math.prod(before[:first]) * macs

    def share_of_time(self, made: FactoredWeight) -> float:
        """Time a layer that runs on factors against this one, until it is not faster."""
        import torch

        from ..layers import factored

        worst = 0.0
        for _ in range(_TIMINGS):
            layers: tuple[Any, Any] = (self.layer, factored(self.layer, made))
            with torch.inference_mode():
                calls = [partial(layer, self.inputs) for layer in layers]
                times = times_in_turns(calls, _ROUNDS, _SECONDS)
            worst = max(worst, float(np.median(times[:, 1] / times[:, 0])))
            if worst >= 1 - _TIME_MARGIN:
                break
        return worst


def _positions(tensor: torch.Tensor, taps: int) -> tuple[int, ...]:
    """Return the sizes of all dimensions but that of the channels."""
    if taps == 0:
        return tuple(tensor.shape[:-1])
    return (*tensor.shape[: -taps - 1], *tensor.shape[-taps:])


def _runs(module: torch.nn.Module, inputs: Any) -> dict[str, _Run]:
    """Run a module, and return what each layer got, by the name of its weight."""
    from ..user.module import apply, evaluating, hooked, inputs_of, weight_layers

    runs: dict[str, _Run] = {}

    def note(name: str, layer: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> None:
        runs.setdefault(name, _Run(layer, args[0] if args else kwargs["input"], outputs))

    hooks = {layer: partial(note, name) for layer, name in weight_layers(module).items()}
    try:
        with evaluating(module), hooked(hooks):
            apply(module, inputs_of(inputs))
    except Exception as error:
        reason = f"does not run on the inputs: {type(error).__name__}: {error}"
        raise InvalidOptions("module", reason) from error
    return runs


def least_work(
    weight: LayerWeight, bench: WorkBench, moment: Float64 | None, energy: float | None = None
) -> FactoredWeight | str:
    """Return the factors with which a layer has the least to do, or why it has none.

    Args:
        weight: of the layer.
        bench: that compares forms.
        moment: of the layer's unfolded input: then the energy is the outputs'.
        energy: 0 to 1, what is kept; 0.99 by default.
    """
    values, allowed = values_of(weight), 1 - (energy or _ENERGY)
    try:
        least, factors = bench.enough, None
        for form in forms_of_layer(weight):
            curve = error_curve(form, values, moment, weight.name)
            # Work depends on ranks alone: factors that cannot win need not be computed.
            hopeful = curve.fewest(_HOPE * allowed)
            if hopeful is None:
                continue
            shapes = form.factor_shapes(weight.shape, hopeful.ranks)
            blank = form(weight.shape, tuple(np.ones(shape, np.float32) for shape in shapes))
            if bench.share(weight, blank) >= least:
                continue
            made = decompose_within(curve, allowed, values, moment, weight.name)
            share = math.inf if made is None else bench.share(weight, made)
            if share < least:
                least, factors = share, made
    except InvalidModel as error:
        return error.reason
    return MORE_WORK if factors is None else factors
