"""Moments of the gradients of a layer's weight, sample by sample. Needs the extra `torch`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..support.pieces import pieces
from .halves import own_samples
from .moments import ResultMoments, ResultSides
from .shrinkage import cross_validated

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 24
"""Elements of the gradients of several samples that are multiplied together."""


class WeightGradients:
    """Sums of Sᵀ S and S Sᵀ over the gradients S of samples, as the matrices that are coded.

    Two halves of the samples are summed up by themselves: each tells how far the other can be
    trusted. All positions of a sample are in S: errors of positions that are alike add up in the
    network.
    """

    def __init__(self, layer: Any, sides: ResultSides) -> None:
        """`sides`: what of the two sums is wanted."""
        import torch

        self._groups = getattr(layer, "groups", 1)
        rows, columns = layer.weight.shape[0], math.prod(layer.weight.shape[1:])
        size = columns if sides.block is None else sides.block
        self._blocks = columns // size, size
        of_rows = (2, rows, rows) if sides.rows else (2, 0)
        of_columns = (2, self._groups, *self._blocks, size)
        self._of_rows = torch.zeros(of_rows, dtype=torch.float64, device="cpu")
        self._of_columns = torch.zeros(of_columns, dtype=torch.float64, device="cpu")
        self._sides = sides
        self._counts = [0, 0]

    def add(
        self,
        layer: Any,
        inputs: torch.Tensor,
        gradient: torch.Tensor,
        halves: Sequence[int] = (),
    ) -> None:
        """Add a call of the layer: its inputs, and the gradients at its output.

        `halves`: of the samples, 0 or 1; of another number of them they take turns.
        """
        if not gradient.any():
            return
        # Where autocast chose the layer's types they are others than that of the weight.
        inputs, gradient = inputs.to(layer.weight), gradient.to(layer.weight)
        is_linear = layer.weight.dim() == 2
        if is_linear:
            inputs, gradient = _by_sample(inputs), _by_sample(gradient)
        elif inputs.dim() < layer.weight.dim():  # one sample alone
            inputs, gradient = inputs.unsqueeze(0), gradient.unsqueeze(0)
        if len(halves) != len(inputs):
            halves = [index % 2 for index in range(len(inputs))]
        for half in range(2):
            own = own_samples(halves, half)
            if is_linear:
                self._add_linear(half, inputs[own], gradient[own])
            else:
                self._add_convolution(half, layer, inputs[own], gradient[own])

    def _add_convolution(
        self, half: int, layer: Any, inputs: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        for part in pieces(len(inputs), _PIECE // layer.weight.numel()):
            self._add(half, _of_weight(layer, inputs[part], gradient[part]))

    def moments(self) -> ResultMoments | None:
        """Return the moments, and let go of the sums; None if they are not finite, or of no
        sample."""
        of_columns, of_rows = self._of_columns.numpy(), self._of_rows.numpy()
        is_finite = np.isfinite(of_columns).all() and np.isfinite(of_rows).all()
        if not any(self._counts) or not is_finite:
            return None
        is_checked = all(self._counts)
        join = cross_validated if is_checked else np.add
        columns = join(*of_columns)
        del of_columns, self._of_columns  # before there is more
        rows = join(*of_rows) if self._sides.rows else None
        return ResultMoments(columns, rows, sum(self._counts), is_checked)

    def _add_linear(self, half: int, x: torch.Tensor, g: torch.Tensor) -> None:
        """Add (samples, positions, inputs) and (samples, positions, outputs)."""
        positions, inputs, outputs = x.shape[1], x.shape[2], g.shape[2]
        if positions * (inputs + outputs) > inputs * outputs:
            self._add(half, g.transpose(1, 2) @ x)
            return
        # Positions are few: products between them say the same.
        of_x, of_g = x @ x.transpose(1, 2), g @ g.transpose(1, 2)
        is_felt = g.any(-1)  # padding is not
        of_columns = self._products(x[is_felt][None], (of_g @ x)[is_felt][None])
        self._of_columns[half] += of_columns.cpu()
        if self._sides.rows:
            self._of_rows[half] += (g[is_felt].T @ (of_x @ g)[is_felt]).cpu()
        self._counts[half] += len(x)

    def _add(self, half: int, gradients: torch.Tensor) -> None:
        """Add gradients of samples, which are along the first dimension."""
        gradients = gradients if gradients.element_size() >= 4 else gradients.float()
        columns = math.prod(self._blocks)
        matrices = gradients.reshape(len(gradients), self._groups, -1, columns)
        rows = matrices.transpose(0, 1).flatten(1, 2)
        self._of_columns[half] += self._products(rows, rows).cpu()
        if self._sides.rows:
            of_rows = matrices.flatten(1, 2).transpose(0, 1).flatten(1)
            self._of_rows[half] += (of_rows @ of_rows.T).cpu()
        self._counts[half] += len(gradients)

    def _products(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the blocks of firstᵀ second, (groups, blocks, size, size); each is (groups, rows,
        columns)."""
        first, second = (
            rows.reshape(*rows.shape[:2], *self._blocks).transpose(1, 2) for rows in (first, second)
        )
        return first.transpose(2, 3) @ second


def _by_sample(values: torch.Tensor) -> torch.Tensor:
    """Return at least float32, (samples, positions, channels); a vector is a sample."""
    values = values if values.element_size() >= 4 else values.float()
    return values.reshape(-1, 1, values.shape[-1]) if values.dim() < 3 else values.flatten(1, -2)


def _of_weight(layer: Any, inputs: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradients of a convolution's weight, samples along the first dimension."""
    import torch
    from torch.nn import grad

    functions = {
        torch.nn.Conv1d: grad.conv1d_weight,
        torch.nn.Conv2d: grad.conv2d_weight,
        torch.nn.Conv3d: grad.conv3d_weight,
    }
    function, shape = functions.get(type(layer)), layer.weight.shape
    if function is None or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        each = [slice(number, number + 1) for number in range(len(inputs))]
        return torch.stack([_by_autograd(layer, inputs[i], gradient[i]) for i in each])
    # Several times as fast: the samples are groups of one convolution.
    samples = len(inputs)
    joined, of_joined = (x.reshape(1, -1, *x.shape[2:]) for x in (inputs, gradient))
    with torch.no_grad():
        found: torch.Tensor = function(  # type: ignore[no-untyped-call]
            *(joined, (samples * shape[0], *shape[1:]), of_joined),
            *(layer.stride, layer.padding, layer.dilation, samples * layer.groups),
        )
    return found.reshape(samples, *shape)


def _by_autograd(layer: Any, inputs: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the weight of a layer that is called once with these inputs."""
    import torch

    with torch.enable_grad():
        output = layer.forward(inputs)
        found: torch.Tensor = torch.autograd.grad(output, layer.weight, gradient)[0]
    return found.detach()
