"""The flags of nnr-encode that say how weights are decomposed, and the decomposition itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.calibrate import calibrate
from ..calibration.file import load_calibration, save_calibration
from ..calibration.gradients import OutputGradients
from ..calibration.held_back import HoldBack, KeptBatches
from ..calibration.moments import Calibration
from ..errors import InvalidOptions
from ..factorization.files import with_weights
from ..model import Model
from ..options import DecompositionOptions, EncodeOptions
from ..user.code import call_function, naming_failures
from ..user.module import load_state
from . import _common as common
from ._options import add_flag, given_values

if TYPE_CHECKING:
    from ..decompose import Decomposition
    from ..training.corrections import Corrections

_LISTED = 5
"""Names in one warning."""

_NEEDED_TO_TRACE = (
    "execution is traced: give --calibrate, or --module with a function that returns "
    "(module, inputs)"
)

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
        "a time; --calibrate goes over the batches several times",
    )


def check_needed(given: argparse.Namespace, options: EncodeOptions) -> None:
    """Raise InvalidOptions if an option needs another one: those of decomposition, and the order of
    execution."""
    if options.order == "execution" and given.module is None and given.calibrate is None:
        raise InvalidOptions("order", _NEEDED_TO_TRACE)
    if options.decomposes:
        return
    names = [name for name in given_values(given, DecompositionOptions) if name != "method"]
    if given.module is not None and given.evaluate is None and options.order != "execution":
        names.append("module")
    for name in names:
        other = ", --evaluate or --order execution" if name == "module" else ""
        reason = f"has no effect without --decompose (or decompose in --set){other}"
        raise InvalidOptions(name, reason)


@dataclass(frozen=True)
class Network:
    """What the command line tells of the network that a model belongs to.

    Attributes:
        module, inputs: torch's module, and samples of its inputs; None: not known.
        calibration: moments of its layers; None: not known.
        held_back: batches that it was not calibrated with, for a target of divergence.
        corrections: of vectors, by samples; None: there are none, or they are not wanted.
        execution: names of tensors in the order of their first use; None: it is not wanted.
    """

    module: Any = None
    inputs: Any = None
    calibration: Calibration | None = None
    held_back: Sequence[Any] | None = None
    corrections: Corrections | None = None
    execution: Sequence[str] | None = None


def network_of(given: argparse.Namespace, model: Model, options: EncodeOptions) -> Network:
    """Return the network that the command line names, calibrated if it says so.

    Raises what loading and calling the user's functions and module raises, and InvalidOptions if
    options contradict each other.
    """
    if given.calibration is not None and given.calibrate is not None:
        raise InvalidOptions("calibration", "stands in place of --calibrate: leave one out")
    if given.save_calibration is not None and given.calibrate is None:
        raise InvalidOptions("save_calibration", "has no effect without --calibrate")
    if given.save_calibration is not None:
        _check_calibration_file(given.save_calibration, overwrite=given.force)
    if given.low_memory and given.calibrate is None and given.calibration is None:
        raise InvalidOptions("low_memory", "has no effect without --calibrate or --calibration")
    if options.tune and options.lossless:
        raise InvalidOptions("tune", "has no effect with --lossless")
    if options.tune and given.calibrate is None:
        raise InvalidOptions("tune", "needs --calibrate, from whose samples vectors learn")
    module, inputs, calibration, held_back, corrections = None, None, None, None, None
    execution: Sequence[str] | None = None
    if given.module is not None:
        module, inputs = _module_and(call_function(given.module, "module"), given.module, "module")
        if options.order == "execution" and inputs is not None:
            execution = _execution_order(given.module, module, inputs)
    if given.calibration is not None:
        calibration = load_calibration(given.calibration, low_memory=given.low_memory)
    if given.calibrate is not None:
        module, batches, settings = _to_calibrate(given.calibrate)
        load_state(module, with_weights(model)[0])
        if options.order == "execution":
            execution, batches = _traced_order(given.calibrate, module, batches)
        gradients = OutputGradients.by_settings(module, settings)
        with naming_failures(given.calibrate, "calibrate"):
            if hasattr(given, "max_kl"):
                batches = held_back = HoldBack(batches)
            needs_moments = options.decomposes or given.save_calibration is not None
            only = None if needs_moments else ()
            kept = KeptBatches(batches)
            try:
                calibration = calibrate(
                    module, kept, only=only, gradients=gradients, low_memory=given.low_memory
                )
            except InvalidOptions as error:
                if error.option != "calibration":
                    raise
                reason = f"{given.calibrate}: {error.reason}"
                raise InvalidOptions("calibrate", reason) from error
        if options.corrects:
            from ..training.corrections import Corrections  # imports libraries others need not

            corrections = Corrections.by_options(options, module, kept.batches, settings)
        if given.save_calibration is not None:
            save_calibration(given.save_calibration, calibration, overwrite=given.force)
    if calibration is not None and not given.quiet:
        _show_incomplete(calibration, options)
    if options.order == "execution" and execution is None:
        raise InvalidOptions("order", _NEEDED_TO_TRACE)
    held = None if held_back is None else held_back.held()
    return Network(module, inputs, calibration, held, corrections, execution)


def _execution_order(location: str, module: Any, inputs: Any) -> list[str]:
    from ..layers.execution import execution_order  # imports torch

    with naming_failures(location, "module"):
        return execution_order(module, inputs)


def _traced_order(location: str, module: Any, batches: Any) -> tuple[list[str], Any]:
    """Return the order in which a module uses its tensors, and batches of which none is lost."""
    from ..layers.execution import traced_order  # imports torch

    with naming_failures(location, "calibrate"):
        return traced_order(module, batches)


def _check_calibration_file(path: str, *, overwrite: bool) -> None:
    """Raise InvalidOptions if a calibration cannot be saved there: making it may take minutes."""
    file = Path(path)
    if file.suffix not in (".npz", ".safetensors"):
        raise InvalidOptions("save_calibration", f"{path!r} does not end with .npz or .safetensors")
    if not file.parent.is_dir():
        raise InvalidOptions("save_calibration", f"there is no folder {str(file.parent)!r}")
    if file.exists() and not overwrite:
        raise InvalidOptions("save_calibration", f"{path!r} exists already; -f overwrites it")


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
        common.warn("nnr-encode", f"{start}: {_listed(names)}: {verb}{space}{rest}")


def _show_incomplete(calibration: Calibration, options: EncodeOptions) -> None:
    """Say on stderr for which weights the calibration knows little, or decompositions nothing: what
    it says of quantization is in the report."""
    unused = calibration.unused if options.decomposes else ()
    for names, reason in (
        (calibration.reduced, "moments between all channels take too much memory"),
        (unused, "did not run: the error of the weight counts"),
    ):
        if names:
            common.warn("nnr-encode", f"calibration of {_listed(names)}: {reason}")


def _listed(names: Sequence[str]) -> str:
    shown = names if len(names) <= _LISTED + 1 else names[:_LISTED]  # never "and 1 more"
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(map(repr, shown)) + more


def _to_calibrate(location: str) -> tuple[Any, Any, Mapping[str, Any]]:
    """Return module, batches and settings, which the user's function may leave out."""
    returned: Any = call_function(location, "calibrate")
    settings: Any = {}
    if isinstance(returned, tuple) and len(returned) == 3:
        returned, settings = returned[:2], returned[2]
        if not isinstance(settings, Mapping):
            reason = f"{location}: the third that it returns is no dict of settings"
            raise InvalidOptions("calibrate", reason)
    module, batches = _module_and(returned, location, "calibrate")
    if batches is None:
        raise InvalidOptions("calibrate", f"{location}: returns no batches beside the module")
    return module, batches, settings


def _module_and(returned: Any, location: str, option: str) -> tuple[Any, Any]:
    """Return the module and what else a user's function "FILE.py:FUNCTION" gave, or None."""
    is_pair = isinstance(returned, tuple) and len(returned) == 2
    module, data = returned if is_pair else (returned, None)
    if not hasattr(module, "state_dict"):
        kind = type(module).__name__
        reason = f"{location}: returns {kind}, not a torch module, or a tuple with one first"
        raise InvalidOptions(option, reason)
    return module, data
