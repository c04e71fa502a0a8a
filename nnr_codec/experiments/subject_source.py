"""Subjects by their source: a function in a file of the user's, or a network of torchvision.

In a plan the source of a network of your own is `"FILE.py:FUNCTION"`. The function returns a torch
module, its checkpoint, and the samples to measure as batches of inputs and targets:

    import numpy as np, torch

    def small(data):
        with np.load(data / "test.npz") as test:
            batch = torch.from_numpy(test["inputs"]), torch.from_numpy(test["labels"])
        return torch.nn.Linear(4, 3), data / "small.npz", [batch]

`data` is the folder that the user names (`--data`), None without it; a function that needs no such
folder takes no argument. The module's weights do not matter, as those of the checkpoint are loaded;
instead of the module there may be a function that makes one. The batches are the same, in the same
order, each time: a list, a loader that does not shuffle, or a function that returns them anew. The
targets are class numbers. For another metric, and for samples to calibrate with, the function
returns a :class:`~nnr_codec.experiments.subject.Subject`.

The file's own folder is on the path of imports while the file is loaded, as it is for a script.
Such a file runs as any program of yours: use plans and subjects of people whom you trust.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.batches import Batch, Batches
from nnr_codec.experiments.subject import Subject
from nnr_codec.user.code import load_function, naming_failures

TORCHVISION = ("vgg16", "resnet50", "mobilenet_v2")
"""Names of networks that need no file; they run on ImageNet in folders."""

_CIFAR10 = [f"resnet{n}_cifar10{kind}" for n in (8, 20, 56) for kind in ("", "_folder")]
_FILES = {
    **dict.fromkeys(_CIFAR10, "cifar_resnets.py"),
    "squeezenet_imagenet": "squeezenet.py",
    "mobilenet_vww": "mobilenet.py",
    "vdsr_set5": "vdsr.py",
    "minilm_pairs": "minilm.py",
}
"""What once were names without a file, and the files in `conformance/subjects` that have them."""


def find_subject(
    source: str,
    data: Path | None = None,
    *,
    folder: Path | None = None,
    stride: int = 1,
    limit: int | None = None,
) -> Subject:
    """Return the subject of a source.

    Args:
        source: `"FILE.py:FUNCTION"`, or one of `TORCHVISION`.
        data: folder of models and data.
        folder: that FILE.py is relative to; the current one by default.
        stride: every `stride`-th sample is measured, from the first on.
        limit: at most as many samples are measured.

    Raises:
        InvalidOptions: there is no such subject, its file or function fails or returns something
            else, `data` lacks what it needs, or `stride` or `limit` is less than 1.
    """
    if ":" not in source:
        check_name(source)
        try:
            from nnr_codec.experiments.datasets.imagenet import torchvision_network
        except ModuleNotFoundError as error:
            reason = f"{error.name} is missing: install the extra eval"
            raise InvalidOptions("subject", reason) from error
        return torchvision_network(source, data).sampled(stride, limit)
    function = load_function(source, "subject", folder)
    try:
        with naming_failures(source, "subject"):
            result = _called(function, source, data)
    except InvalidOptions as error:
        if data is None and error.__cause__ and inspect.signature(function).parameters:
            reason = f"{error.reason}; its function takes the folder of data: give --data"
            raise InvalidOptions(error.option, reason) from error.__cause__
        raise
    return _as_subject(result, source).sampled(stride, limit)


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_name(name: str) -> None:
    """Raise InvalidOptions if a source that names no file is none of `TORCHVISION`."""
    if name in _FILES:
        source = f'"PATH/conformance/subjects/{_FILES[name]}:{name}"'
        reason = f"{name!r} is a function in a file now: write {source}; PATH leads to our sources"
        raise InvalidOptions("subject", reason)
    if name not in TORCHVISION:
        names = ", ".join(TORCHVISION)
        raise InvalidOptions("subject", f"{name!r} is neither FILE.py:FUNCTION nor one of {names}")


def _called(function: Callable[..., Any], source: str, data: Path | None) -> Any:
    """Call a user's function with the folder of data, if it takes any argument.

    A default stands where no folder is given.
    """
    parameters = inspect.signature(function).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
    if len(required) > 1:
        names = ", ".join(parameter.name for parameter in required)
        reason = f"takes {names}; it can take the folder of data, or nothing"
        raise InvalidOptions("subject", f"{source}: {reason}")
    if not parameters or (data is None and not required):
        return function()
    named = [p for p in parameters if p.name == "data"]
    folder = (required or named or list(parameters))[0]
    if folder.kind in _VARIADIC or folder.kind == folder.POSITIONAL_ONLY:
        return function(data)
    return function(**{folder.name: data})


def _as_subject(result: Any, source: str) -> Subject:
    """Return what a user's function returns as a subject whose batches are checked."""
    from torch import nn

    if isinstance(result, Subject):
        calibration = result.calibration and _checked(result.calibration, source)
        return replace(result, batches=_checked(result.batches, source), calibration=calibration)
    if not isinstance(result, tuple) or len(result) != 3:
        length = f" of {len(result)}" if isinstance(result, tuple) else ""
        kind = f"a value of type {type(result).__name__}{length}"
        expected = "(module, checkpoint, batches) or a Subject"
        raise InvalidOptions("subject", f"{source}: returns {kind}; a function returns {expected}")
    module, checkpoint, batches = result
    if not isinstance(checkpoint, str | os.PathLike):
        raise _wrong_part(source, "checkpoint", checkpoint, "the path of a model file")
    if isinstance(module, nn.Module):
        module = partial(copy.deepcopy, module)
    elif not callable(module):
        expected = "a torch module, or a function that makes one"
        raise _wrong_part(source, "module", module, expected)
    if isinstance(batches, Iterator) or not (callable(batches) or isinstance(batches, Iterable)):
        expected = "a list or a loader that can be read again, or a function that returns batches"
        raise _wrong_part(source, "batches", batches, expected)
    again = batches if callable(batches) else lambda: batches
    name = source.rpartition(":")[2]
    return Subject(name, module, Path(checkpoint), _checked(again, source))


def _checked(batches: Callable[[], Iterable[Any]], source: str) -> Callable[[], Iterable[Batch]]:
    """Return a function that yields the same batches, of which each is a pair."""
    if isinstance(batches, Batches):  # can be thinned out only as it is
        return batches

    def pairs() -> Iterator[Batch]:
        for batch in batches():
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise _wrong_part(source, "a batch", batch, "a pair (inputs, targets)")
            yield batch[0], batch[1]

    return pairs


def _wrong_part(source: str, part: str, value: Any, expected: str) -> InvalidOptions:
    kind = f"a value of type {type(value).__name__}"
    return InvalidOptions("subject", f"{source}: {part} is {kind}, not {expected}")
