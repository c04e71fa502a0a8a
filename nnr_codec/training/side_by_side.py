"""A network and a changed copy of it, run side by side: they meet at each layer.

Nothing is kept of layers that are behind them, however many samples there are. Needs the extra
`torch`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..support.paused_call import PausedCall, pause, stop_all
from ..user.module import apply, evaluating, hooked_layers, structural_copy, weight_layers

if TYPE_CHECKING:
    import torch

_MOST_THREADS = 256
"""Of OpenMP, which starts its own ones for each thread that calls it."""


@dataclass(frozen=True)
class Arrival:
    """What a layer of the original network, and that of the copy, see in one batch.

    Attributes:
        inputs, changed: of the layer, and of that of the copy.
        output: of the layer.
    """

    inputs: torch.Tensor
    changed: torch.Tensor
    output: torch.Tensor


@dataclass(frozen=True)
class Meeting:
    """A layer that both networks are at, in all batches.

    Attributes:
        name: of its weight, in the state dict.
        layer: of the copy, which has not run yet: its weight may be changed.
        arrivals: one for each batch.
    """

    name: str
    layer: torch.nn.Module
    arrivals: Sequence[Arrival]


def meetings(
    original: torch.nn.Module,
    copy: torch.nn.Module,
    batches: Sequence[Any],
    called_once: Mapping[Any, str],
) -> Iterator[Meeting]:
    """Yield the layers in the order in which they run, as long as all batches and both networks
    take the same way.

    Each batch runs on structures of its own, as modules may keep something between what they do
    in a call.

    Args:
        original: a network.
        copy: of the same layers.
        batches: inputs, as the network takes them.
        called_once: those of its layers that they meet at, with the names of their weights.
    """
    names = set(called_once.values())
    layers = {name: layer for layer, name in weight_layers(copy).items() if name in names}
    with ExitStack() as stack:
        stack.enter_context(evaluating(original))
        stack.enter_context(evaluating(copy))
        threads = stack.enter_context(_threads_of(2 * len(batches)))
        first_calls = [
            PausedCall(partial(_run, _watched(original, names, behind=True), inputs, threads))
            for inputs in batches
        ]
        second_calls = [
            PausedCall(partial(_run, _watched(copy, names), inputs, threads)) for inputs in batches
        ]
        stack.callback(stop_all, [*first_calls, *second_calls])
        runs = list(zip(first_calls, second_calls, strict=True))
        while True:
            places = [(first.resume(), second.resume()) for first, second in runs]
            names = {place and place[0] for pair in places for place in pair}
            if len(names) != 1 or None in names:
                return
            (name,) = names
            arrivals = [
                Arrival(inputs, changed, output) for (_, inputs, output), (_, changed) in places
            ]
            del places
            yield Meeting(name, layers[name], arrivals)


def _watched(
    network: torch.nn.Module, names: Collection[str], *, behind: bool = False
) -> torch.nn.Module:
    """Return a structure with the network's tensors, whose calls pause before layers, by the names
    of their weights, or `behind` them."""
    watched = structural_copy(network)
    for layer, name in weight_layers(watched).items():
        if name in names and behind:
            layer.register_forward_hook(partial(_at_original, name), with_kwargs=True)
        elif name in names:
            layer.register_forward_pre_hook(partial(_at_copy, name), with_kwargs=True)
    return watched


def layers_called_once(
    module: torch.nn.Module, inputs: Any
) -> tuple[dict[torch.nn.Module, str], int]:
    """Run a module, and return the layers that it calls once, with the names of their weights, each
    of which is that of one layer alone; and the most bytes that the input and the output of any
    layer have together."""
    named = weight_layers(module)
    names = list(named.values())
    calls = dict.fromkeys(named, 0)
    most = 0

    def see(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        nonlocal most
        calls[layer] += 1
        most = max(most, _input(args, kwargs).nbytes + output.nbytes)

    with evaluating(module), hooked_layers(dict.fromkeys(named, see)):
        apply(module, inputs)
    once = {layer: n for layer, n in named.items() if calls[layer] == 1 and names.count(n) == 1}
    return once, most


@contextmanager
def _threads_of(calls: int) -> Iterator[int]:
    """Return how many threads torch may use in each of some calls: as many as here, unless they are
    too many together."""
    import torch

    here = torch.get_num_threads()
    try:
        yield max(1, min(here, _MOST_THREADS // calls))
    finally:
        torch.set_num_threads(here)  # which what calls set is as well, in threads to come


def _run(module: torch.nn.Module, inputs: Any, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)  # by each thread, as OpenMP keeps a number for each
    with torch.no_grad():  # which is of the thread
        apply(module, inputs)


def _at_original(
    name: str, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> None:
    pause((name, _input(args, kwargs), output))


def _at_copy(name: str, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    pause((name, _input(args, kwargs)))


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    found: torch.Tensor = args[0] if args else kwargs["input"]
    return found
