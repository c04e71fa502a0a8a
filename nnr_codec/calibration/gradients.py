"""How much a network's result feels errors: gradients of a loss drawn from its own output.

The KL divergence of the result, or half its squared error, changes by about half the mean square of
<S, D> for a small error D of a weight, S being the gradients of a loss whose targets are drawn from
the network's own output: the natural-gradient (Fisher) metric, of which the moments of S are kept
(K-FAC, arXiv 1503.05671). Inputs are perturbed: on samples that a network was trained on, and is
sure of, gradients are many times too small. Needs the extra `torch`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..errors import InvalidModel, NnrError
from ..support.process_setting import ProcessSetting
from ..user.module import as_it_was, copied, hooked_layers, in_mode, inputs_of, weight_layers
from .differentiable import differentiable
from .foldable_norms import FoldableNorm
from .halves import Halves
from .moments import MAX_BYTES, ResultMoments, ResultSides, RowLayout, result_sides
from .norm_gradients import NormGradients
from .outputs import Outputs, output_of, sampled_loss, targets_of
from .perturbation import perturbed
from .settings import check_settings, naming_setting
from .weight_gradients import WeightGradients

if TYPE_CHECKING:
    import torch

_MOST_TURNS = 8
"""Times the bytes that one pass over the batches may hold, that all together may."""

_SEED = 0
_MOST_DRAWS = 8
"""Of targets for one batch: few samples tell little of the directions that the result feels."""

_DRAWN = 1024
"""Samples times draws, after which one draw is enough for any batch."""

_SQUARED = 1 << 22
"""Elements of a gradient that are squared together, in float64."""

_SAMPLES_DRAWN = 256
_VALUES_DRAWN = 1 << 16
"""Classifications, or values of the output, with which a batch is drawn often enough."""


class NoGradients(InvalidModel):
    """What a module returns has no gradients: it runs under `torch.no_grad`, for instance."""


class OutputGradients:
    """Collects what gradients tell of each tensor, batch by batch.

    Args:
        module: whose state dict names the weights.
        outputs: "classes": labels are drawn from the softmax of the output; "values": the output is
            projected to a random direction; None: as :func:`~.outputs.output_of` has it.
        perturb: returns the inputs of a batch, changed a little, with a generator of random
            numbers. None: shifts, flips and blur of images, noise of 5 % of their deviation for
            other floats, and integers as they are.
        loss: returns the loss of (output, targets of the batch), in place of one whose targets are
            drawn from the output.
        max_bytes: for the moments of a pass over the batches;
            :func:`~.moments.result_sides` has the rule.

    Attributes:
        kinds: what the outputs were taken for, so far: "classes", "values" or "loss".
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        outputs: Outputs | None = None,
        perturb: Callable[[Any, torch.Generator], Any] | None = None,
        loss: Callable[[Any, Any], torch.Tensor] | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._module = module
        self._outputs = outputs
        self._perturb = naming_setting("perturb", perturb) if perturb else perturbed
        self._loss = naming_setting("loss", loss) if loss else None
        self._max_bytes = max_bytes
        self._layers = weight_layers(module)
        self._layouts = {name: _matrix(layer) for layer, name in self._layers.items()}
        self._sides = result_sides(self._layouts, max_bytes)
        self._is_first = True
        self._start()

    def _start(self) -> None:
        """Start anew, with the same random numbers."""
        import torch

        self._generator = torch.Generator().manual_seed(_SEED)
        self._norms = NormGradients(self._module)
        self._calls: dict[str, list[tuple[Any, Any, Any]]] = {}
        self._sums: dict[str, WeightGradients] = {}
        self._squares: dict[str, float] = {}
        self._unknown: set[str] = set()
        self._halves, self._halves_now = Halves(), list[int]()
        self._drawn = 0
        self.kinds: set[str] = set()

    @classmethod
    def by_settings(cls, module: torch.nn.Module, settings: Mapping[str, Any]) -> OutputGradients:
        """Return the collector with the user's `perturb`, `loss` and `outputs`, as far as given.

        Raises:
            InvalidOptions: another setting is given, or one of them is of another kind.
        """
        check_settings(settings)
        return cls(module, **settings)

    @property
    def reduced(self) -> list[str]:
        """Names of the weights of which not all moments are collected, as they take too much."""
        return [name for name, sides in self._sides.items() if not sides.is_whole]

    def in_turns(self, most_bytes: int) -> list[OutputGradients]:
        """Return collectors that start anew, with the same random numbers, each of the moments of
        some weights, which take so much memory at most, or of a single one.

        The bound on all moments together holds for each weight alone. The first collects all else.
        """
        return self._in_turns(most_bytes, result_sides(self._layouts, None, self._max_bytes))

    def in_few_turns(self) -> list[OutputGradients]:
        """Return collectors as :meth:`in_turns` does, each of moments that take what all together
        might, and about eight of them at most: large models are known in part."""
        most = _MOST_TURNS * self._max_bytes
        return self._in_turns(self._max_bytes, result_sides(self._layouts, most, self._max_bytes))

    def _in_turns(self, most_bytes: int, sides: Mapping[str, ResultSides]) -> list[OutputGradients]:
        layers_of: dict[str, list[Any]] = {}
        for layer, name in self._layers.items():
            layers_of.setdefault(name, []).append(layer)
        turns: list[OutputGradients] = []
        left = 0
        for name, layers in layers_of.items():
            size = sides[name].nbytes(self._layouts[name])
            if not turns or size > left:
                turns.append(self._of_no_layer(is_first=not turns))
                left = most_bytes
            turns[-1]._layers |= dict.fromkeys(layers, name)
            turns[-1]._sides[name] = sides[name]
            left -= size
        return turns or [self._of_no_layer(is_first=True)]

    def _of_no_layer(self, *, is_first: bool) -> OutputGradients:
        other = copy.copy(self)
        other._layers, other._sides, other._is_first = {}, {}, is_first
        other._start()
        return other

    def add(self, batch: Any) -> None:
        """Add the gradients of a batch, in evaluation mode; afterwards all is as it was.

        Raises:
            NoGradients: the output has none.
            InvalidModel: the output is no tensor of finite floats.
        """
        module = self._module
        self._halves_now = self._halves.of(inputs_of(batch))
        with (
            as_it_was(module),
            in_mode(module, training=False),
            differentiable(module, self._felt()),
            self._weights_squared(),
        ):
            found = self._of_perturbed(batch)
            output, kind = found or self._output(inputs_of(batch), batch)
            if not output.isfinite().all():
                raise InvalidModel("module", "returns outputs that are not finite for the samples")
            if not output.requires_grad and self._is_first:
                raise NoGradients("module", "returns a tensor without gradients")
            for loss, is_last in self._losses(batch, output, kind):
                if not output.requires_grad:  # its layers did not run
                    continue
                loss.backward(retain_graph=not is_last)  # type: ignore[no-untyped-call]
                self._add_calls()
                self._add_squares()

    def _of_perturbed(self, batch: Any) -> tuple[torch.Tensor, Outputs] | None:
        """Return what :func:`output_of` returns of perturbed inputs; None: they are none that the
        module is made for."""
        inputs = self._perturb(copied(inputs_of(batch)), self._generator)  # in place perhaps
        try:
            output, kind = self._output(inputs, batch)
        except (NnrError, MemoryError):
            raise
        except Exception:  # indices and ranges that are checked, for instance
            return None
        return (output, kind) if bool(output.isfinite().all()) else None

    def _output(self, inputs: Any, batch: Any) -> tuple[torch.Tensor, Outputs]:
        """Return what :func:`output_of` returns, and watch the layers on the way."""
        hooks = {layer: partial(self._hook, name) for layer, name in self._layers.items()}
        of_norms = self._norms.hooks() if self._is_first else {}
        with hooked_layers(hooks), hooked_layers(of_norms):
            return output_of(self._module, inputs, batch, self._outputs)

    def moments(self) -> dict[str, ResultMoments]:
        """Return the moments by the weights' names, without those of which nothing is known, and
        let go of what they are made of; the sensitivities stay."""
        sums, self._sums = self._sums, {}
        names = [name for name in sums if name not in self._unknown]
        with _single_threads as count, ThreadPoolExecutor(count) as pool:
            found = pool.map(lambda name: sums.pop(name).moments(), names)
            return {n: moments for n, moments in zip(names, found, strict=True) if moments}

    def sensitivities(self, samples: int) -> dict[str, float]:
        """Return the squared gradients of each parameter, and of the statistics of batch norms, by
        name: in the mean over its elements, and over so many samples. What is not finite is not
        known."""
        tensors = chain(self._module.named_parameters(), self._module.named_buffers())
        sizes = {name: tensor.numel() for name, tensor in tensors}
        means = {
            name: total / (samples * sizes[name])
            for name, total in self._squares.items()
            if sizes[name]
        }
        return {name: mean for name, mean in means.items() if math.isfinite(mean)}

    def foldable_norms(self, samples: int) -> list[tuple[FoldableNorm, FoldableNorm]]:
        """Return the batch norms that can be folded, by what was seen of so many samples: each with
        the bias before it if that can go into its offset, and without."""
        return self._norms.foldable(samples)

    def _losses(
        self, batch: Any, output: torch.Tensor, kind: Outputs
    ) -> Iterator[tuple[torch.Tensor, bool]]:
        """Yield the losses of an output, and whether each is the last one."""
        if self._loss is not None:
            self.kinds.add("loss")
            yield self._loss(output, targets_of(batch)), True
            return
        self.kinds.add(kind)
        is_class = kind == "classes"
        count = output.numel() // output.shape[-1] if is_class else output.numel()
        enough = _SAMPLES_DRAWN if is_class else _VALUES_DRAWN
        draws = min(max(enough // max(count, 1), 1), _MOST_DRAWS)
        draws = draws if self._drawn < _DRAWN else 1
        self._drawn += draws * len(output)
        for draw in range(1, draws + 1):
            yield sampled_loss(output, kind, self._generator) / math.sqrt(draws), draw == draws

    def _add_squares(self) -> None:
        """Add up squared gradients of all samples together: as targets are drawn independently,
        products of different samples are 0 in the mean."""
        for name, gradient in self._norms.statistics():
            self._add_square(name, gradient)
        for name, parameter in self._module.named_parameters():
            if parameter.grad is not None:
                self._add_square(name, parameter.grad)
                parameter.grad = None

    @contextmanager
    def _weights_squared(self) -> Iterator[None]:
        """Add up the squared gradient of each weight as soon as it is there, and let go of it:
        together gradients are as large as the model."""

        def square(name: str, parameter: torch.Tensor) -> None:
            found = parameter.grad
            if found is not None:
                self._add_square(name, found.coalesce().values() if found.is_sparse else found)
                parameter.grad = None

        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(square, name))  # type: ignore[no-untyped-call]
            for name, parameter in self._module.named_parameters()
            if parameter.requires_grad and parameter.dim() > 1
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _felt(self) -> Container[torch.Tensor]:
        """Return the parameters whose gradients are wanted."""
        parameters = set(self._module.parameters())
        weights: set[Any] = {layer.weight for layer in self._layers}
        # A weight that is a buffer is felt by way of what is before it.
        return parameters if self._is_first or not weights <= parameters else weights

    def _add_square(self, name: str, gradient: torch.Tensor) -> None:
        if not self._is_first:
            return
        parts: Any = gradient.reshape(-1).split(_SQUARED)  # type: ignore[no-untyped-call]
        square = sum(float(part.double().square().sum()) for part in parts)
        self._squares[name] = self._squares.get(name, 0.0) + square

    def _hook(
        self, name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if not output.requires_grad:
            return
        inputs = (args[0] if args else kwargs["input"]).detach()
        if name not in self._sums:
            self._sums[name] = WeightGradients(layer, self._sides[name])
        calls = self._calls.setdefault(name, [])
        output.register_hook(lambda gradient: calls.append((layer, inputs, gradient.detach())))

    def _add_calls(self) -> None:
        """Add the gradients of all calls of layers, several layers side by side: torch's own
        threads are of little use to convolutions as small as those of one sample."""
        with _single_threads as count, ThreadPoolExecutor(count) as pool:
            for _ in pool.map(self._add_calls_of, self._calls):
                pass

    def _add_calls_of(self, name: str) -> None:
        for layer, inputs, gradient in self._calls[name]:
            try:
                self._sums[name].add(layer, inputs, gradient, self._halves_now)
            except (IndexError, RuntimeError, TypeError, ValueError):  # of another shape
                self._unknown.add(name)
        self._calls[name].clear()


def _matrix(layer: Any) -> RowLayout:
    """Return the layout of a layer's weight as the matrix that is coded."""
    return RowLayout(tuple(layer.weight.shape), getattr(layer, "groups", 1))


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _set_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


_single_threads = ProcessSetting(_threads, _set_threads, 1, of_threads=True)
"""One thread of torch's in each thread; how many it used before is what the block gets."""
