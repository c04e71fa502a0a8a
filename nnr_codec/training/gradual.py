"""Decomposition in steps, with training between them: a little, train, a little more, and so on.

    def train(module):
        optimizer = torch.optim.Adam(module.parameters(), 1e-3)
        fine_tune(module, optimizer, batches, cross_entropy, steps=300)

    options = EncodeOptions(decomposition=DecompositionOptions("cp", compression_ratio=8))
    decompose_gradually(module, options, train, steps=3)

Each step decomposes the weights anew, as training has left them: the products of the factors. The
ratios are a geometric series, so that each step takes the same part of what is left (in the manner
of the one-shot and iterative pruning of Han et al. 2015, arXiv 1506.02626). Needs the extra
`torch`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..calibration.calibrate import calibrate
from ..calibration.moments import Calibration
from ..checkpoints.torch_tensors import model_of_module
from ..decompose import decompose_model
from ..errors import InvalidModel, InvalidOptions
from ..factorization.forms import FactoredWeight
from ..options import EncodeOptions
from ..user.module import parameter_uses

if TYPE_CHECKING:
    from torch import nn

STEPS = 3


def decompose_gradually(
    module: nn.Module,
    options: EncodeOptions,
    train: Callable[[nn.Module], object],
    *,
    steps: int = STEPS,
    batches: Iterable[Any] | None = None,
) -> nn.Module:
    """Decompose a module to a compression ratio in steps, and train it after each of them.

    Args:
        module: changed in place: layers are replaced by factorized ones. It may have factorized
            layers already; these are decomposed anew.
        options: as of :func:`~nnr_codec.decompose.decompose_model`, with a compression ratio, which
            is that of the last step.
        train: called with the module after each step. The parameters of factors are new ones each
            time, so that it makes its own optimizer.
        steps: 1 and more; with one, the module is decomposed at once.
        batches: inputs, or pairs (inputs, targets), iterated again and again: then it is the error
            of the layers' outputs on these that ranks are chosen by and decomposition minimizes.

    Returns:
        The module.

    Raises:
        InvalidModel: a weight is not finite; or one that would be decomposed is that of several
            layers.
        InvalidOptions: there is no compression ratio, or it is out of reach, which is noticed
            before anything is changed; `steps` is less than 1; or `batches` can be gone over once
            only.
    """
    from ..layers import factorize, with_dense_layers

    ratio = options.decomposition.compression_ratio
    if ratio is None or options.decomposition.method == "none":
        raise InvalidOptions("compression_ratio", "is needed, and a method")
    if steps < 1:
        raise InvalidOptions("steps", f"{steps} is less than 1")
    if isinstance(batches, Iterator):
        raise InvalidOptions("batches", "can be gone over once only: a list or a loader is needed")
    for step in range(steps):
        dense = with_dense_layers(copy.deepcopy(module))
        calibration = None if batches is None else calibrate(dense, batches)
        if step == 0 and steps > 1:
            _factors(dense, options, ratio, calibration)  # refuses what is out of reach
        present = ratio ** ((step + 1) / steps)
        factors = _factors(dense, options, present, calibration)
        factorize(with_dense_layers(module), factors)
        train(module)
    return module


def _factors(
    module: nn.Module, options: EncodeOptions, ratio: float, calibration: Calibration | None
) -> dict[str, FactoredWeight]:
    """Return the factors of a module of dense layers, at a compression ratio.

    Raises InvalidModel if one of them is of a weight that other layers have, too: they would keep
    it, and no parameters would be saved.
    """
    decomposition = replace(options.decomposition, compression_ratio=ratio)
    factors = decompose_model(
        model_of_module(module),
        replace(options, decomposition=decomposition),
        module=module,
        calibration=calibration,
    ).factorizations
    uses = parameter_uses(module)
    for name in factors:
        if uses[id(module.get_parameter(name))] > 1:
            reason = "is the weight of several layers; an override {'decompose': 'none'} keeps it"
            raise InvalidModel(name, reason)
    return factors
