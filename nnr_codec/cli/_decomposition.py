"""The flags of nnr-encode that say how weights are decomposed, and the decomposition itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOptions
from ..factorization.files import with_weights
from ..model import Model
from ..options import DecompositionOptions, EncodeOptions
from ..support.listed import listed
from . import _common as common
from ._network import NEEDED_TO_TRACE, Network
from ._options import add_flag, given_values

if TYPE_CHECKING:
    from ..decompose import Decomposition

_PLURALS = {"is": "are", "holds": "hold", "has": "have"}
"""Verbs that reasons begin with."""


def add_decomposition(group: Any) -> None:
    """Add the flags to a group of the parser."""
    amount = group.add_mutually_exclusive_group()
    for target, name, text in (
        (group, "method", "put factors in place of weights"),
        (
            amount,
            "rank",
            "a rank; the fraction of each layer's parameters to keep; or as VBMF says",
        ),
        (amount, "energy", "part of the squared norm to keep, 0 to 1"),
        (amount, "compression_ratio", "parameters of the whole model, before over after"),
        (group, "joint_scheme", "what repeated layers share"),
        (group, "carriage", "LR in the standard's units, or all as tensors"),
        (group, "objective", "what auto minimizes; macs and latency need --module"),
    ):
        add_flag(target, DecompositionOptions, name, text)
    group.add_argument(
        "--module",
        metavar="FILE.py:FUNCTION",
        help="returns the torch module that the weights belong to, or (module, inputs)",
    )
    group.add_argument(
        "--calibrate",
        metavar="FILE.py:FUNCTION",
        help="returns (module, batches), or (module, batches, settings): the errors that count are "
        "then those of the network's result",
    )
    group.add_argument(
        "--calibration",
        metavar="FILE",
        help="what --save-calibration wrote, instead of --calibrate",
    )
    group.add_argument(
        "--save-calibration", metavar="FILE", help="keep what --calibrate learned, in an .npz file"
    )
    group.add_argument(
        "--low-memory",
        action="store_true",
        help="with a calibration: what is known of layers waits in temporary files, but for one at "
        "a time; --calibrate runs the module several times",
    )


def check_needed(given: argparse.Namespace, options: EncodeOptions) -> None:
    """Raise InvalidOptions if an option needs another one: those of decomposition, and the order of
    execution."""
    if options.order == "execution" and given.module is None and given.calibrate is None:
        raise InvalidOptions("order", NEEDED_TO_TRACE)
    if options.decomposes:
        return
    names = [name for name in given_values(given, DecompositionOptions) if name != "method"]
    if given.module is not None and given.evaluate is None and options.order != "execution":
        names.append("module")
    for name in names:
        other = ", --evaluate or --order execution" if name == "module" else ""
        reason = f"has no effect without --decompose (or decompose in --set){other}"
        raise InvalidOptions(name, reason)


def decompose(
    network: Network,
    model: Model,
    options: EncodeOptions,
    executor: Executor | None,
    advance: Callable[[float], object],
) -> Decomposition:
    """Decompose the weights of a model; what are factors stays so.

    `advance` is called with the number of weights that are done, half of those whose ranks are
    chosen; in the end it was called with as many as the model has. Raises what `decompose_model`
    raises.
    """
    from ..decompose import decompose_model  # imports libraries that others need not

    model, factored = with_weights(model)
    dense = {name: parameter for name, parameter in model.items() if name not in factored}
    left = float(sum(parameter.size for parameter in model.values()))

    def progress(name: str) -> None:
        nonlocal left
        left -= model[name].size / 2
        advance(model[name].size / 2)

    decomposition = decompose_model(
        dense,
        options,
        module=network.module,
        inputs=network.inputs,
        calibration=network.calibration,
        executor=executor,
        progress=progress,
    )
    advance(left)
    return decomposition


def show_skipped(decomposition: Decomposition) -> None:
    """Say on stderr which weights stay dense, and why: one line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in decomposition.skipped.items():
        by_reason.setdefault(reason.removeprefix(f"{name!r}: "), []).append(name)
    for reason, names in by_reason.items():
        start, (verb, space, rest) = "stays dense", reason.partition(" ")
        if len(names) > 1:
            start, verb = "stay dense", _PLURALS.get(verb, verb)
        common.warn("nnr-encode", f"{start}: {listed(names)}: {verb}{space}{rest}")
