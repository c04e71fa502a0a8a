"""The network that the command line names: the user's module, what is learned from samples, and in
which order it uses its tensors."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.file import load_calibration, save_calibration
from ..calibration.moments import Calibration
from ..errors import InvalidOptions
from ..factorization.files import with_weights
from ..model import Model
from ..options import EncodeOptions
from ..support.listed import listed
from ..user.code import call_function, naming_failures
from ..user.module import load_state
from . import _common as common

if TYPE_CHECKING:
    from ..training.corrections import Corrections
    from ..training.learned import Learned

NEEDED_TO_TRACE = (
    "execution is traced: give --calibrate, or --module with a function that returns "
    "(module, inputs)"
)


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
    _check_calibration_flags(given, options)
    network = Network()
    if given.module is not None:
        network = _of_module(given, options)
    if given.calibration is not None:
        known = load_calibration(given.calibration, low_memory=given.low_memory)
        network = replace(network, calibration=known)
    if given.calibrate is not None:
        network = _calibrated(given, model, options, network)
    if network.calibration is not None and not given.quiet:
        _show_incomplete(network.calibration, options)
    if options.order == "execution" and network.execution is None:
        raise InvalidOptions("order", NEEDED_TO_TRACE)
    return network


def _check_calibration_flags(given: argparse.Namespace, options: EncodeOptions) -> None:
    """Raise InvalidOptions if flags of calibration contradict each other or others."""
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


def _of_module(given: argparse.Namespace, options: EncodeOptions) -> Network:
    """Return the network that the function of --module gives."""
    module, inputs = _module_and(call_function(given.module, "module"), given.module, "module")
    execution = None
    if options.order == "execution" and inputs is not None:
        execution = _execution_order(given.module, module, inputs)
    return Network(module, inputs, execution=execution)


def _calibrated(
    given: argparse.Namespace, model: Model, options: EncodeOptions, network: Network
) -> Network:
    """Return the network, its module being the one that the function of --calibrate gives, and what
    is learned from the batches."""
    module, batches, settings = _to_calibrate(given.calibrate)
    load_state(module, with_weights(model)[0])
    execution = network.execution
    if options.order == "execution":
        execution, batches = _traced_order(given.calibrate, module, batches)
    found = _learned(given, options, module, batches, settings)
    if given.save_calibration is not None:
        save_calibration(given.save_calibration, found.calibration, overwrite=given.force)
    return replace(
        network,
        module=module,
        calibration=found.calibration,
        held_back=found.held_back,
        corrections=found.corrections,
        execution=execution,
    )


def _learned(
    given: argparse.Namespace,
    options: EncodeOptions,
    module: Any,
    batches: Any,
    settings: Mapping[str, Any],
) -> Learned:
    """Return what is learned of a module; a refusal names the flag, and the user's function."""
    from ..training.learned import learn  # imports libraries others need not

    try:
        with naming_failures(given.calibrate, "calibrate"):
            return learn(
                module,
                batches,
                options,
                settings=settings,
                of_inputs=given.save_calibration is not None,
                hold_back=hasattr(given, "max_kl"),
                low_memory=given.low_memory,
            )
    except InvalidOptions as error:
        if error.option != "calibration":
            raise
        reason = f"{given.calibrate}: {error.reason}"
        raise InvalidOptions("calibrate", reason) from error


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


def _show_incomplete(calibration: Calibration, options: EncodeOptions) -> None:
    """Say on stderr for which weights the calibration knows little, or decompositions nothing: what
    it says of quantization is in the report."""
    unused = calibration.unused if options.decomposes else ()
    for names, reason in (
        (calibration.reduced, "moments between all channels take too much memory"),
        (unused, "did not run: the error of the weight counts"),
    ):
        if names:
            common.warn("nnr-encode", f"calibration of {listed(names)}: {reason}")


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
