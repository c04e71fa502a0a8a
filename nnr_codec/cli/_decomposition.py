"""The options of nnr-encode that say how weights are decomposed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, get_args

from ..calibration.collection import calibrate
from ..calibration.moments import Calibration
from ..errors import InvalidOptions
from ..factorization.files import with_weights
from ..model import Model
from ..options import DecompositionOptions, EncodeOptions
from ..options.decomposition import DEFAULTS, Carriage, JointScheme, Method, Objective, Rank
from ..user.code import call_function, naming_failures
from ..user.module import load_state
from . import _common as common

if TYPE_CHECKING:
    from ..decompose import Decomposition

_LISTED = 5
"""Names in one warning."""

_PLURALS = {"is": "are", "holds": "hold", "has": "have"}
"""Verbs that reasons begin with."""

_OPTIONS = ("rank", "energy", "compression_ratio", "joint_scheme", "carriage", "objective")


def add_decomposition(group: Any) -> None:
    """Add the options to a group of the parser."""
    _choice(group, "--decompose", "method", Method, "put factors in place of weights")
    amount = group.add_mutually_exclusive_group()
    amount.add_argument(
        "--rank",
        type=rank_of,
        metavar="N|FRACTION|vbmf",
        help="a rank; the fraction of each layer's parameters that is kept; or found by VBMF",
    )
    amount.add_argument(
        "--energy", type=float, metavar="E", help="part of the squared norm to keep, 0 to 1"
    )
    amount.add_argument(
        "--compression-ratio",
        type=float,
        metavar="C",
        help="parameters of the whole model, before over after",
    )
    _choice(group, "--joint-scheme", "joint_scheme", JointScheme, "what repeated layers share")
    _choice(
        group, "--carriage", "carriage", Carriage, "LR in the standard's units, or all as tensors"
    )
    text = "what auto minimizes; macs and latency need --module"
    _choice(group, "--objective", "objective", Objective, text)
    group.add_argument(
        "--module",
        metavar="FILE.py:FUNCTION",
        help="returns the torch module that the weights belong to, or (module, inputs)",
    )
    group.add_argument(
        "--calibrate",
        metavar="FILE.py:FUNCTION",
        help="returns (module, batches): errors are then those of the layers' outputs",
    )


def decomposition_options(given: argparse.Namespace) -> DecompositionOptions:
    """Return what the command line says.

    Raises:
        InvalidOptions: values that do not go together.
    """
    values = {name: getattr(given, name) for name in _OPTIONS if getattr(given, name) is not None}
    return DecompositionOptions(given.decompose or DEFAULTS["method"], **values)


def rank_of(text: str) -> Rank:
    """Convert a rank: a whole number, a fraction, or "vbmf".

    Raises:
        argparse.ArgumentTypeError: it is none of them.
    """
    if text == "vbmf":
        return "vbmf"
    try:
        return float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        reason = f"{text!r} is neither a number nor 'vbmf'"
        raise argparse.ArgumentTypeError(reason) from None


def _choice(group: Any, flag: str, name: str, kinds: Any, text: str) -> None:
    choices = get_args(kinds)
    text = f"{text} (default: {DEFAULTS[name]})"
    group.add_argument(flag, choices=choices, default=None, help=text)


def check_needed(given: argparse.Namespace, options: EncodeOptions) -> None:
    """Check that nothing is asked of a decomposition that does not take place.

    Raises:
        InvalidOptions: something is.
    """
    if options.decomposes:
        return
    for name in (*_OPTIONS, "module", "calibrate"):
        if getattr(given, name) is not None:
            raise InvalidOptions(name, "says nothing without --decompose (or decompose in --set)")


def decompose(
    given: argparse.Namespace,
    model: Model,
    options: EncodeOptions,
    executor: Executor | None,
    advance: Callable[[int], object],
) -> Decomposition:
    """Decompose the weights of a model as the command line says.

    Args:
        given: the command line.
        model: the input. What it has as factors stays so.
        options: of the encoder.
        executor: decomposes weights side by side.
        advance: called with the number of weights that are done.

    Raises:
        InvalidOptions: a file of the user's lacks its function or fails.
        InvalidModel: the module does not fit the model.
    """
    from ..decompose import decompose_model  # imports libraries that others need not

    model, factored = with_weights(model)
    dense = {name: parameter for name, parameter in model.items() if name not in factored}
    module, inputs, calibration = None, None, None
    if given.module is not None:
        module, inputs = _pair(given.module, "module", needed=False)
    if given.calibrate is not None:
        module, batches = _pair(given.calibrate, "calibrate")
        load_state(module, model)
        with naming_failures(given.calibrate, "calibrate"):
            calibration = calibrate(module, batches)
        if not given.quiet:
            _show_lacking(calibration)
    return decompose_model(
        dense,
        options,
        module=module,
        inputs=inputs,
        calibration=calibration,
        executor=executor,
        progress=lambda name: advance(model[name].size),
    )


def show_skipped(found: Decomposition) -> None:
    """Say on stderr which weights stay dense, and why; those of one reason in one line."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in found.skipped.items():
        by_reason.setdefault(reason.removeprefix(f"{name!r}: "), []).append(name)
    for reason, names in by_reason.items():
        start = "stays dense" if len(names) == 1 else "stay dense"
        of_all = _of_several(reason, len(names))
        common.warn("nnr-encode", f"{start}: {_listed(names)}: {of_all}")


def _of_several(reason: str, count: int) -> str:
    """Return why weights stay dense, in the singular or in the plural."""
    verb, space, rest = reason.partition(" ")
    return f"{_PLURALS[verb]}{space}{rest}" if count > 1 and verb in _PLURALS else reason


def _show_lacking(calibration: Calibration) -> None:
    """Say on stderr of which weights the calibration does not tell everything."""
    for names, reason in (
        (calibration.reduced, "moments between all channels take too much memory"),
        (calibration.unused, "did not run: the error of the weight counts"),
    ):
        if names:
            common.warn("nnr-encode", f"calibration of {_listed(names)}: {reason}")


def _listed(names: Sequence[str]) -> str:
    shown = names if len(names) <= _LISTED + 1 else names[:_LISTED]  # never "and 1 more"
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(map(repr, shown)) + more


def _pair(place: str, option: str, *, needed: bool = True) -> tuple[Any, Any]:
    """Return module and data, as the user's function "FILE.py:FUNCTION" gives them."""
    returned = call_function(place, option)
    is_pair = isinstance(returned, tuple) and len(returned) == 2
    module, data = returned if is_pair else (returned, None)
    if not hasattr(module, "state_dict"):
        kind = type(module).__name__
        reason = f"{place}: returns {kind}, not a torch module, or a pair with one first"
        raise InvalidOptions(option, reason)
    if needed and data is None:
        raise InvalidOptions(option, f"{place}: returns no batches beside the module")
    return module, data
