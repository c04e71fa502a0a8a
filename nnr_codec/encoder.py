"""The encoder: open a model, decompose its weights, encode, write."""

from __future__ import annotations

import io
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any, BinaryIO

from .calibration.divergence import OutputDivergence
from .calibration.moments import Calibration
from .checkpoints import open_checkpoint
from .checkpoints.atomic import atomic_output
from .checkpoints.torch_tensors import is_module, model_of_module, model_of_tensors
from .decoding.source import Source
from .decoding.stream_decoder import StreamDecoder
from .encoding.arrangement.coding_order import in_coding_order
from .encoding.corrections.corrected_stream import Corrector
from .encoding.known import Known
from .encoding.model_encoder import encode_model
from .encoding.plan import stream_profile
from .encoding.targets.log import kept_log, search_key
from .encoding.targets.measures import Evaluate
from .encoding.updates.residual import residual_output
from .encoding.updates.update_source import update_options, update_source
from .encoding.work import Work
from .errors import InvalidModel, InvalidOptions, NnrWarning, naming
from .factorization.files import with_weights
from .factorization.forms import FactoredWeight
from .model import Array, Model
from .options import EncodeOptions
from .options.layered import layered_options
from .report import EncodeReport, OnStage, TensorReport
from .user.module import as_it_was, evaluating, with_state

ModelLike = str | os.PathLike[str] | Model | Mapping[str, Any] | Any
"""A path, a Model, arrays or tensors by name, or a module of torch."""


@dataclass(frozen=True)
class EncodeResult:
    """What `encode` made.

    Attributes:
        report: sizes and errors, by tensor and in all.
        data: the bitstream; None if it was written to a file.
    """

    report: EncodeReport
    data: bytes | None = field(repr=False)


def encode(
    model_or_path: ModelLike,
    out: str | os.PathLike[str] | None = None,
    options: EncodeOptions | None = None,
    *,
    factorizations: Mapping[str, FactoredWeight] | None = None,
    calibration: Calibration | Iterable[Any] | None = None,
    evaluate: Callable[[Any], float] | None = None,
    corrector: Corrector | None = None,
    execution: Sequence[str] | None = None,
    base: Sequence[Source] = (),
    base_model: ModelLike | None = None,
    residual: str | os.PathLike[str] | None = None,
    parents: Sequence[Source] = (),
    overwrite: bool = False,
    resume: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    progress: Callable[[TensorReport], object] | None = None,
    on_stage: OnStage | None = None,
    verify: bool = False,
    low_memory: bool = False,
) -> EncodeResult:
    """Encode a model into an NNR bitstream.

    Args:
        model_or_path: a checkpoint's path, a Model, arrays or tensors of torch by name, or a module
            of torch. One of factors with their map, as ``nnr-decode --layers factorized`` writes
            it, is the model of their weights.
        out: file to write, which appears complete or not at all; None: return the bytes.
        options: how; by default ``EncodeOptions()``.
        factorizations: weights of the model, by name, that travel as these factors; their dense
            values are read for the report alone: of the error of what decoders make of the
            factors. An array that several of them have is coded once. What `options` say of a
            weight holds for its factors ``<weight>.factor0``, … as well. None: what
            `options.decomposition` gives (:func:`nnr_codec.decompose.decompose_model`).
        calibration: second moments of the layers' inputs: decomposition and quantization then
            minimize the error of the layers' outputs, and of the network's result. Its names are
            those of the model's weights. Or, of a module, batches of samples: inputs, or pairs
            (inputs, targets), which it is calibrated with. For the target `max_kl` some of these
            are held back; of the others some judge the corrections that follow. The module is run
            with other weights meanwhile, and other threads must not use it; afterwards it is as it
            was.
        evaluate: for the target `max_drop`: called with the module with decoded weights, in
            evaluation mode without gradients, if the model is one, else with decoded arrays by
            name; returns a float, more is better. It is called at most 8 times, once of them with
            the model itself. For `max_kl` it returns the divergence, such as an
            :class:`~nnr_codec.calibration.divergence.OutputDivergence` of the arrays; by default
            it is made of the batches that are held back.
        corrector: corrects weights and vectors of the stream, such as a
            :class:`~nnr_codec.training.corrections.Corrections`; by default it is made of the
            batches: a `Calibration` alone has no samples to run, so that nothing is corrected. Not
            for an update with `parents`, and not for the target `max_nmse`.
        execution: for the option `order` "execution": names of tensors in the order of their first
            use, such as :func:`nnr_codec.layers.execution.execution_order` returns; what is not
            there comes last. By default it is traced with the first of the batches.
        base: the streams that decoders have, oldest first: the stream is an update, which with them
            decodes to the model. Tensors are coded as differences to what these decode to, where
            that is smaller; errors and targets are those of the model. A value that the base stands
            for within its own error is not sent again.
        base_model: what the base was made of, as `model_or_path`: what did not change since stays
            as decoders have it.
        residual: file (.safetensors) of what earlier updates with this base did not carry, which is
            added to the model; when `out` is in its place it is replaced by what this one does not
            carry. The errors of successive models then cancel in the mean, while those of one may
            be greater.
        parents: the earlier streams of a series, oldest first, for contexts alone: the model
            already is a difference.
        overwrite: replace an existing file.
        resume: file in which the search for a target keeps what it has seen. One that was
            interrupted goes on from there; the file goes when the search has ended.
        executor: codes tensors side by side, in threads, processes or elsewhere; the bytes do
            not depend on it.
        progress: called with each tensor's report when it is coded; where the stream is made more
            than once (for a target, or to compare profiles), each time.
        on_stage: called with "surveyed", "chosen", "quantized", "coded", "measured" or "verified"
            when that is done to tensors, and the number of their elements; in threads of the
            executor, too. The tensors are surveyed once, and the next ones done as often as the
            stream is made; they are measured for targets of quality alone.
        verify: decode the stream before `out` appears, and compare: what is coded exactly has to
            come back bit by bit, all else with the squared error of the report.
        low_memory: what is known of tensors waits in temporary files: of `calibration` that of one
            layer at a time is in memory. A module runs on the batches several times, which are
            kept meanwhile.

    Raises:
        InvalidModel: a tensor cannot be coded; the message names it.
        InvalidOptions: an option is out of range, or `out` cannot be written.
        TargetNotReached: no stream meets the target; nothing was written.
        BitstreamError: a parent, or the base, is damaged.
        VerificationMismatch: `verify` is given, and the stream decodes to something else.
        OSError: a file cannot be read or written.

    Warns:
        NnrWarning: for each of the report's notes.
    """
    start = time.perf_counter()
    options = _for_kind_of_stream(
        *(options or EncodeOptions(), base),
        parents=parents,
        calibration=calibration,
        base_model=base_model,
        residual=residual,
    )
    if options.order == "execution" and execution is None:
        execution, calibration = _traced(model_or_path, calibration)
    known = _known(model_or_path, calibration, options, evaluate, corrector, low_memory)
    decoder = StreamDecoder(parents=parents, base=base, executor=executor)
    series = decoder.series if decoder.base is None else decoder.base.series
    stream_profile(options, series)  # refuses what no model could make right

    with (
        as_it_was(model_or_path) if is_module(model_or_path) else nullcontext(),
        residual_output(residual, out) as residual_file,  # in place last: the stream exists then
        _opened_model(model_or_path) as opened,
        naming(opened.source, InvalidModel),
        _output(out, overwrite) as output,
        nullcontext() if base_model is None else _opened_model(base_model) as old,
        update_source(decoder.base, old, residual, residual_file, executor) as update,
    ):
        model, given = with_weights(opened)
        moments = known.calibration
        if moments is not None:
            _check_moments(moments, model, is_own=moments is not calibration)
        if factorizations is None and options.decomposes:
            factorizations, options = _decomposed(model, given, options, moments, executor)
        factorizations = {**given, **(factorizations or {})}
        model = in_coding_order(model, options.order, execution or ())
        key = partial(search_key, model, options, factorizations, moments, known.evaluate, update)
        with kept_log(resume if options.target else None, key) as log:
            report = encode_model(
                model,
                factorizations,
                options,
                output,
                series=series,
                known=replace(known, calibration=None) if base else known,
                update=update,
                log=log,
                work=Work(executor, progress, on_stage),
                verify=verify,
                low_memory=low_memory,
            )
        if moments is not None and not base:
            report = replace(report, calibrated=moments.summary)
        data = output.getvalue() if isinstance(output, io.BytesIO) else None
    for note in report.notes:
        warnings.warn(note, NnrWarning, stacklevel=2)
    return EncodeResult(replace(report, seconds=time.perf_counter() - start), data)


def _for_kind_of_stream(
    options: EncodeOptions, base: Sequence[Source], *, parents: Sequence[Source], **given: Any
) -> EncodeOptions:
    """Return the options as they are for an update, for quality layers, or for a plain stream.

    Args:
        options: as they were given.
        base, parents, given: as of :func:`encode`; `given` are those of updates.

    Raises:
        InvalidOptions: they do not go together.
    """
    options = update_options(options, base, parents=parents, **given)
    if options.quality_layers == 1:
        return options
    if base or parents:
        raise InvalidOptions("quality_layers", "do not go with a base or parents")
    return layered_options(options)


def _decomposed(
    model: Model,
    given: Mapping[str, FactoredWeight],
    options: EncodeOptions,
    known: Calibration | None,
    executor: Executor | None,
) -> tuple[Mapping[str, FactoredWeight], EncodeOptions]:
    """Return factors of the weights that are not `given` as such, and options that suit them."""
    from .decompose import decompose_model  # imports libraries that others need not

    dense = {name: parameter for name, parameter in model.items() if name not in given}
    made = decompose_model(dense, options, calibration=known, executor=executor)
    return made.factorizations, made.adapted(options)


def _output(
    out: str | os.PathLike[str] | None, overwrite: bool
) -> AbstractContextManager[BinaryIO]:
    """Return what a stream is written to: a file, or memory for None."""
    return nullcontext(io.BytesIO()) if out is None else atomic_output(out, overwrite=overwrite)


def _check_measured(options: EncodeOptions, evaluate: object, calibration: object) -> None:
    """Raise InvalidOptions if a target misses what measures it, or nothing is to be measured."""
    target, is_missing = options.target, evaluate is None
    if target == "max_drop" and is_missing:
        raise InvalidOptions(target, "needs evaluate: a function that returns a score")
    if target == "max_kl" and is_missing and isinstance(calibration, Calibration | None):
        reason = "needs a module and batches as calibration, some of which are held back"
        raise InvalidOptions(target, f"{reason}; or evaluate, an OutputDivergence")
    if target not in ("max_drop", "max_kl") and not is_missing:
        raise InvalidOptions("evaluate", "has no effect without max_drop")


def _check_batches(model: ModelLike, batches: Iterable[Any]) -> None:
    """Raise InvalidOptions if these are no batches for a module."""
    if not is_module(model) or not isinstance(batches, Iterable):
        reason = "is a Calibration or, of a module of torch in place of its file or arrays, batches"
        raise InvalidOptions("calibration", reason)
    if isinstance(batches, str | Mapping) or hasattr(batches, "shape"):
        kind = type(batches).__name__
        reason = f"is a {kind}: batches are in a list, a saved calibration is read by "
        raise InvalidOptions("calibration", reason + "nnr_codec.calibration.file.load_calibration")


def _known(
    model: ModelLike,
    calibration: Calibration | Iterable[Any] | None,
    options: EncodeOptions,
    evaluate: Callable[[Any], float] | None,
    corrector: Corrector | None,
    low_memory: bool,
) -> Known:
    """Return what is known of the network, learned from batches of samples if these are given; a
    divergence is measured on some that are held back."""
    _check_measured(options, evaluate, calibration)
    if evaluate is not None and is_module(model) and not isinstance(evaluate, OutputDivergence):
        evaluate = on_module(model, evaluate)
    if calibration is None or isinstance(calibration, Calibration):
        if options.tune and corrector is None:
            raise InvalidOptions("tune", "needs a module and batches as calibration")
        return Known(calibration, evaluate, corrector)
    _check_batches(model, calibration)
    module: Any = model
    model_of_module(module)  # refuses what cannot be coded before anything is run
    from .training.learned import learn  # imports libraries that others need not

    found = learn(
        module,
        calibration,
        options,
        hold_back=options.max_kl is not None and evaluate is None,
        correct=corrector is None,
        low_memory=low_memory,
    )
    if found.held_back is not None:
        evaluate = OutputDivergence(module, found.held_back)
    corrector = found.corrections if corrector is None else corrector
    return Known(found.calibration, evaluate, corrector)


def _check_moments(known: Calibration, model: Model, *, is_own: bool) -> None:
    """Raise InvalidOptions if a calibration is of another model; InvalidModel, if it is this one's
    own."""
    try:
        known.check(model)
    except InvalidOptions as error:
        if not is_own:
            raise
        reason = "changes its weights while it runs, so that it cannot be calibrated"
        raise InvalidModel("module", f"{reason} ({error.reason})") from error


def _traced(module: Any, batches: Any) -> tuple[list[str], Iterable[Any]]:
    """Return the order in which a module uses its tensors, and batches of which none is lost."""
    if not is_module(module) or isinstance(batches, Calibration | None):
        reason = "'execution' needs a module and batches as calibration, or the argument execution"
        raise InvalidOptions("order", reason)
    _check_batches(module, batches)
    from .layers.execution import traced_order  # imports torch

    return traced_order(module, batches)


def on_module(module: Any, evaluate: Callable[[Any], float]) -> Evaluate:
    """Return a function of arrays that calls `evaluate` with a module of torch which has them."""

    @wraps(evaluate)
    def measured(tensors: Mapping[str, Array]) -> float:
        with with_state(module, Model.from_arrays(tensors)), evaluating(module):
            return evaluate(module)

    return measured


def _opened_model(source: ModelLike) -> Model:
    if isinstance(source, Model):
        # The caller's stays open.
        return source.with_parameters(source.values())
    if isinstance(source, str | os.PathLike):
        return open_checkpoint(source)
    if is_module(source):
        return model_of_module(source)
    if not isinstance(source, Mapping):
        kinds = "not a path, Model, mapping or module of torch"
        raise InvalidModel("model", f"is a {type(source).__name__}: {kinds}")
    return model_of_tensors(source)


def save_file(
    tensors: Mapping[str, Any],
    filename: str | os.PathLike[str],
    options: EncodeOptions | None = None,
) -> None:
    """Encode arrays into the file `filename`, replacing it; raises what `encode` raises."""
    encode(tensors, filename, options, overwrite=True)
