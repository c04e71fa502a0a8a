"""Distillation: a network learns from the outputs of another one, its teacher.

    distillation = Distillation(dense)
    fine_tune(factorized, optimizer, batches, cross_entropy, steps=2000, distillation=distillation)

The loss is T² times the divergence of the student's softmax from the teacher's, both of logits
divided by the temperature T (Hinton et al. 2015, arXiv 1503.02531), or the squared error of outputs
that are no classes. It is added to the task's loss, so that a loss with a term for the rate keeps
its measure. Needs the extra `torch`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, get_args

from ..calibration.outputs import Outputs, float_output, output_of, targets_of, with_classes_last
from ..errors import InvalidModel, InvalidOptions
from ..user.module import evaluating, inputs_of

if TYPE_CHECKING:
    import torch
    from torch import nn

TEMPERATURE = 4.0
"""Of the softmax: a network is surer of what it was trained on than of what it will see, and what
it is sure of tells little of the other classes."""


class Distillation:
    """Compares outputs with those of a teacher, which runs in evaluation mode without gradients.

    Attributes:
        teacher: usually a deep copy of the network before it was decomposed.
        temperature: of both softmaxes.
        weight: what the loss is multiplied by; the task's counts as 1.
        outputs: what the outputs are of.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        temperature: float = TEMPERATURE,
        weight: float = 1.0,
        outputs: Outputs | None = None,
    ) -> None:
        """Remember the teacher, which stays as it is.

        Args:
            teacher: takes the inputs that the student takes, on the same device.
            temperature: above 0, of outputs that are classes.
            weight: above 0.
            outputs: "classes": the divergence of softmaxes counts; "values": the mean squared error
                does; None: classes, if targets are integers, as
                :func:`~nnr_codec.calibration.outputs.output_of` tells.

        Raises:
            InvalidOptions: an option has no such value.
        """
        for name, value in (("temperature", temperature), ("weight", weight)):
            if not 0 < value < math.inf:
                raise InvalidOptions(name, f"{value} is no finite number above 0")
        if outputs is not None and outputs not in get_args(Outputs):
            raise InvalidOptions("outputs", f"{outputs!r} is neither 'classes' nor 'values'")
        self.teacher = teacher
        self.temperature = temperature
        self.weight = weight
        self.outputs = outputs

    def loss(self, batch: Any, result: Any) -> torch.Tensor:
        """Return the weighted loss of a student's result on a batch; runs the teacher once.

        Args:
            batch: a pair (inputs, targets), of which the targets only tell where classes are; or
                inputs alone.
            result: what the student returned; of several tensors, the first one of floats counts.

        Raises:
            InvalidModel: the teacher's output has another shape.
        """
        from torch.nn import functional

        with evaluating(self.teacher):
            expected, kind = output_of(self.teacher, inputs_of(batch), batch, self.outputs)
        output = with_classes_last(float_output(result), targets_of(batch))
        if output.shape != expected.shape:
            shapes = f"{tuple(expected.shape)}, the student's {tuple(output.shape)}"
            raise InvalidModel("teacher", f"its output has the shape {shapes}")
        if kind == "values":
            return self.weight * functional.mse_loss(output.float(), expected.float())
        return self.weight * softened_divergence(output, expected, self.temperature)

    def check_student(self, student: nn.Module) -> None:
        """Check that training a student leaves the teacher as it is.

        Raises:
            InvalidModel: both have a parameter that is trained in common, or a buffer.
        """
        tensors = {id(p) for p in self.teacher.parameters() if p.requires_grad}
        tensors |= {id(buffer) for buffer in self.teacher.buffers()}
        for name, tensor in (*student.named_parameters(), *student.named_buffers()):
            if id(tensor) in tensors:
                reason = (
                    "is the teacher's as well, and would change it: give a deep copy as teacher"
                )
                raise InvalidModel(name, reason)


def softened_divergence(
    output: torch.Tensor, expected: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return T² times the mean divergence of softmaxes at the temperature T, classes last."""
    from torch.nn import functional

    ours, theirs = (
        functional.log_softmax(logits.float().flatten(0, -2) / temperature, -1)
        for logits in (output, expected)
    )
    divergence = functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    return divergence * temperature**2
