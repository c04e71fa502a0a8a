"""Encoding of a model whose decompositions are known, as often as a target or a profile wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from functools import partial

from ..decoding.series import Series
from ..factorization.forms import FactoredWeight
from ..model import Model
from ..options import EncodeOptions
from ..report import TensorReport
from .factor_transport import Carriage, carry
from .model_mapping import is_quantized
from .stream_encoder import StreamEncoder
from .target_size import Draft, draft_file, smaller_profile, within_target


def encode_model(
    model: Model,
    factorizations: Mapping[str, FactoredWeight],
    options: EncodeOptions,
    files: ExitStack,
    *,
    carriage: Carriage | None = None,
    series: Series | None = None,
    executor: Executor | None = None,
    progress: Callable[[TensorReport], object] | None = None,
) -> Draft:
    """Encode a model; return the draft of the smaller profile, within the target size if any.

    Args:
        model, options, executor, progress: as of :func:`nnr_codec.encode`.
        factorizations: the weights that travel as factors, by name.
        files: closes the draft's file.
        carriage: as of :func:`nnr_codec.encode`.
        series: the earlier streams.

    Raises: as :func:`nnr_codec.encode`.
    """
    chosen_carriage = carriage or options.decomposition.carriage
    carried = carry(model, factorizations, options, chosen_carriage)

    def draft(chosen: EncodeOptions) -> Draft:
        encoder = StreamEncoder(chosen, series, executor, progress, carried)
        file = files.enter_context(draft_file())
        for unit in encoder.units(model):
            file.write(unit)
        return Draft(file, encoder.report(), encoder.skippable_bytes)

    smaller = partial(smaller_profile, draft)
    if options.target_size is None:
        return smaller(options)
    quantizes = any(is_quantized(p, options) for p in model.values())
    original_bytes = sum(p.nbytes for p in model.values())
    return within_target(smaller, options, original_bytes, quantizes)
