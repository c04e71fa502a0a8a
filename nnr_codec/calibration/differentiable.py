"""A module whose chosen parameters have gradients for a while. Needs the extra `torch`."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def differentiable(module: torch.nn.Module, felt: Container[torch.Tensor]) -> Iterator[None]:
    """Let these parameters require gradients, if they are floats, and no others; afterwards all are
    as they were. The user's hooks of parameters are not called."""
    import torch

    before = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    tables = [table for parameter, *_ in before for table in _hooks_of(parameter)]
    hooks = [dict(table) for table in tables]
    try:
        for table in tables:
            table.clear()
        for parameter, *_ in before:
            parameter.grad = None  # else what is there would be added to, in place
            parameter.requires_grad_(parameter.is_floating_point() and parameter in felt)
        with torch.enable_grad():
            yield
    finally:
        for parameter, required, gradient in before:
            parameter.grad = None
            parameter.requires_grad_(required)
            parameter.grad = gradient
        for table, own in zip(tables, hooks, strict=True):
            table.update(own)


def _hooks_of(parameter: Any) -> list[Any]:
    """Return the tables of a parameter's hooks, which torch looks at in the course of backward."""
    tables = parameter._backward_hooks, parameter._post_accumulate_grad_hooks
    return [table for table in tables if table is not None]
