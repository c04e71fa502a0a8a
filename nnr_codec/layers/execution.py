"""The order in which a module uses its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain, count
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..user.module import apply, evaluating, inputs_of


def execution_order(module: nn.Module, inputs: Any) -> list[str]:
    """Return names in a module's state dict in the order in which the tensors are first used.

    The module is called once, in evaluation mode. A tensor is used when a function of torch gets
    it; one that none gets, such as a counter, when the part of the module that has it is called.
    Tensors of which neither is seen are not in the list.

    Args:
        module: the module.
        inputs: a tensor, a tuple of what the module takes, or a dict of that by keyword.

    Raises: what calling the module raises.

    >>> layers = {"last": nn.Linear(3, 2), "unused": nn.Linear(3, 3), "first": nn.Linear(4, 3)}
    >>> class Backwards(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layers = nn.ModuleDict(layers)
    ...
    ...     def forward(self, inputs):
    ...         return self.layers["last"](self.layers["first"](inputs))
    >>> execution_order(Backwards(), torch.zeros(1, 4))
    ['layers.first.weight', 'layers.first.bias', 'layers.last.weight', 'layers.last.bias']
    """
    clock = count()
    used: dict[str, int] = {}  # when each name was
    called: dict[str, int] = {}
    state = module.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)

    def note(times: dict[str, int], own: Iterable[str]) -> None:
        for name in own:
            times.setdefault(name, next(clock))

    with ExitStack() as stack:
        for part, own in _own_names(module).items():
            hook = partial(note, called, [name for name in own if name in state])
            handle = part.register_forward_pre_hook(lambda part, arguments, hook=hook: hook())
            stack.callback(handle.remove)
        stack.enter_context(evaluating(module))
        stack.enter_context(_Watching(lambda tensor: note(used, names.get(id(tensor), ()))))
        apply(module, inputs)
    times = {**called, **used}
    return sorted(times, key=times.__getitem__)


def traced_order(module: nn.Module, batches: Iterable[Any]) -> tuple[list[str], Iterable[Any]]:
    """Return :func:`execution_order` with the first of some batches (inputs, or pairs with
    targets), and all of the batches, which may come only once."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        return [], ()
    names = execution_order(module, inputs_of(first))
    return names, chain([first], iterator) if iterator is batches else batches


def _own_names(module: nn.Module) -> dict[nn.Module, list[str]]:
    """Return the names of the tensors that each part of a module has itself; of a part that is in
    several places all of them."""
    owners: dict[nn.Module, list[str]] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for kind in (part.named_parameters, part.named_buffers):
            named = kind(prefix=prefix, recurse=False, remove_duplicate=False)
            owners.setdefault(part, []).extend(name for name, _ in named)
    return owners


class _Watching(TorchFunctionMode):
    """Tells of the tensors that functions of torch get; not of those whose shape, say, is read."""

    def __init__(self, note: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(function, "__name__", None) != "__get__":
            for tensor in _tensors((args, kwargs or {})):
                self._note(tensor)
        return function(*args, **(kwargs or {}))


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in values, and in lists, tuples and dicts of them."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from chain.from_iterable(map(_tensors, values.values()))
    elif isinstance(values, list | tuple):
        yield from chain.from_iterable(map(_tensors, values))
