"""How far the outputs of a network with other weights are from its own. Needs the extra `torch`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidModel, InvalidOptions
from ..model import Array, Model
from ..user.module import evaluating, inputs_of, with_state
from .outputs import Outputs, output_of

if TYPE_CHECKING:
    import torch


class OutputDivergence:
    """The Kullback-Leibler divergence of a module's outputs from those that it has now, in nats.

    Of outputs that are classes it is the mean of KL(now || then) of the softmaxes, over samples (or
    tokens, or pixels). Of values there are no probabilities: it is that of normal distributions
    around them whose variance is the outputs' own: half their squared error over their squared
    deviation from their mean, all samples together. So it is relative; a result of 0.005 is an
    error of 20 dB below the signal, and for embeddings of length 1 it is one minus the cosine.
    What is "classes" and "values" is as for the gradients of the calibration.

    Attributes:
        fingerprint: stands for the batches and the outputs, 64 hexadecimal digits.
    """

    def __init__(
        self, module: torch.nn.Module, batches: Iterable[Any], *, outputs: Outputs | None = None
    ) -> None:
        """Run the module over `batches`, which stay in memory, as its outputs do.

        Args:
            module: with the original weights.
            batches: inputs, or pairs (inputs, targets), that it was not calibrated with.
            outputs: what the outputs are; None: as they look.

        Raises:
            InvalidOptions: there are no batches.
            InvalidModel: the module returns no tensor of floats, or none that is finite.
        """
        self._module = module
        self._batches = list(batches)
        if not self._batches:
            raise InvalidOptions("max_kl", "there are no samples to measure it on")
        self._outputs = outputs
        self._expected = [self._output(batch) for batch in self._batches]
        if not any(output.numel() for output, _ in self._expected):
            raise InvalidOptions("max_kl", "the samples to measure it on have no outputs")
        if not all(bool(output.isfinite().all()) for output, _ in self._expected):
            raise InvalidModel("module", "its own outputs are not finite")
        state = hashlib.sha256()
        for output, kind in self._expected:
            state.update(f"{kind} {tuple(output.shape)}".encode())
            state.update(np.ascontiguousarray(output.numpy()).tobytes())
        self.fingerprint = state.hexdigest()

    def __call__(self, tensors: Mapping[str, Array]) -> float:
        """Return the divergence with other tensors, by their names in the module's state dict;
        infinite if outputs are not finite. The module has its own ones again afterwards.

        Raises:
            InvalidModel: a tensor is missing, or has another shape than in the module.
        """
        divergence, squared_error, count, values = 0.0, 0.0, 0, 0
        with with_state(self._module, Model.from_arrays(tensors)):
            for batch, (expected, kind) in zip(self._batches, self._expected, strict=True):
                output, _ = self._output(batch)
                if output.shape != expected.shape or not bool(output.isfinite().all()):
                    return math.inf
                if kind == "classes":
                    divergence += _kl_divergence(expected, output)
                    count += expected.numel() // expected.shape[-1]
                else:
                    squared_error += float((output - expected).square().sum())
                    values += expected.numel()
        energy = self._energy
        if values and squared_error:
            divergence += values * (squared_error / (2 * energy) if energy else math.inf)
        return divergence / (count + values)

    @property
    def _energy(self) -> float:
        """Squared deviation of the outputs that are values from their mean, all together."""
        import torch

        values = [output.flatten() for output, kind in self._expected if kind == "values"]
        if not values:
            return 0.0
        joined = torch.cat(values)
        return float((joined - joined.mean()).square().sum())

    def _output(self, batch: Any) -> tuple[torch.Tensor, Outputs]:
        """Return the output for a batch, float64 on the processor, and what it is."""
        with evaluating(self._module):
            output, kind = output_of(self._module, inputs_of(batch), batch, self._outputs)
        return output.detach().double().cpu(), kind


def _kl_divergence(expected: torch.Tensor, output: torch.Tensor) -> float:
    """Return the sum of KL(expected || output) of the softmaxes of logits, classes last."""
    from torch.nn import functional

    logs, others = (functional.log_softmax(logits, -1) for logits in (expected, output))
    return max(float((logs.exp() * (logs - others)).sum()), 0.0)  # rounding can go below 0
