"""The search of tools: a data unit encoded in every way that is allowed, and the smallest kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from .._core import choose_unary_length, count_zero_rows
from ..bitstream import Codebook, Context, DataUnit, NodeId, Parent, PayloadType
from ..bitstream.unit_layout import Integers, matrix_shape
from ..decoding.series import Series
from ..options import EncodeOptions
from ..quantize.codebook import codebook_of, promises_codebook
from .tensor_quantizer import QuantizedTensor
from .unit_encoder import CodedLevels, encode_data_unit

_INFORMATION_LEFT = 0.25
"""The part of a zero's information that it costs where the contexts expect zeros (measured)."""

_MOST_BITS_OF_ZERO = 0.15


class ToolSearch:
    """Finds the smallest data unit of given integers, with the tools that the options allow."""

    def __init__(
        self,
        context: Context,
        series: Series | None = None,
        node_ids: Mapping[str, NodeId] | None = None,
    ) -> None:
        """`node_ids`: the identities of the tensors in `series`, the earlier streams, by name."""
        self._context = context
        self._series = series or Series()
        self._node_ids = node_ids or {}

    def smallest(
        self,
        record: DataUnit,
        options: EncodeOptions,
        levels: Integers,
        qp: int,
        vectors: Mapping[str, CodedLevels] | None = None,
    ) -> bytes:
        """Encode with every combination of the tools that are allowed, and keep the smallest.

        Args:
            record: the unit's header; what the tools say in it is filled in.
            options: of the tensor.
            levels: its integers before the doubling of dependent quantization; int32, flat.
            qp: its quantization parameter; ignored for INT.
            vectors: the other tensors of a block, by role.
        """
        return min(self._candidates(record, options, levels, qp, vectors or {}), key=len)

    def _candidates(
        self,
        record: DataUnit,
        options: EncodeOptions,
        levels: Integers,
        qp: int,
        vectors: Mapping[str, CodedLevels],
    ) -> Iterator[bytes]:
        rows, cols = matrix_shape(tuple(record.tensor_dimensions or ()))
        record.dq_flag = int(options.dq)
        record.scan_order = options.scan_order if rows > 1 and cols > 1 else 0
        parents = list(self._parents(record, options, rows * cols))
        # Decoded once for all candidates, and only if some have a parent.
        series = self._series.loaded(record.names) if len(parents) > 1 else Series()
        parent_data = partial(series.parent_data, label="parent", offset=0)
        tools = itertools.product(
            parents,
            self._codebooks(record, options, levels),
            self._row_skipping(options, levels.reshape(rows, cols)),
        )
        for (parent, history), (codebooks, coded_levels), row_skipping in tools:
            if history and codebooks and len(codebooks[0].values) == 1:
                continue  # nothing is coded then, the history flag neither
            coded = CodedLevels(
                coded_levels, qp, row_skipping, history, options.search_initialization
            )
            unary_length = options.unary_length
            if unary_length == "auto":
                unary_length = choose_unary_length(coded_levels)
            tried = replace(
                record,
                parent=parent,
                codebooks=codebooks,
                cabac_unary_length_minus1=unary_length - 1,
            )
            tensors = {**vectors, "weight": coded}
            yield encode_data_unit(tried, tensors, self._context, parent_data)

    def _parents(
        self, record: DataUnit, options: EncodeOptions, elements: int
    ) -> Iterator[tuple[Parent | None, bool]]:
        """Yield the ways of using the earlier streams: (parent, history contexts)."""
        yield None, False
        name = record.names[0]
        if name not in self._series:
            return
        if self._series.elements(name) != elements:
            return  # another tensor of the same name
        is_matrix = min(matrix_shape(tuple(record.tensor_dimensions or ()))) > 1
        temporal = options.temporal_contexts
        history = options.history_contexts and is_matrix  # the flag exists for matrices alone
        if temporal:
            yield self._parent(name, 1), False
        if history:
            yield self._parent(name, 0), True
        if temporal and history:
            yield self._parent(name, 1), True

    def _parent(self, name: str, temporal: int) -> Parent:
        device_id = self._node_ids[name].device_id
        return Parent(temporal_context_modeling_flag=temporal, parent_device_id=device_id)

    def _codebooks(
        self, record: DataUnit, options: EncodeOptions, levels: Integers
    ) -> Iterator[tuple[list[Codebook], Integers]]:
        """Yield the levels as they are, and as indices of a codebook."""
        yield [], levels
        if not options.codebook or record.dq_flag or record.payload_type == PayloadType.INT:
            return
        if options.codebook == "auto" and not promises_codebook(levels):
            return
        indexed = codebook_of(levels)
        if indexed is not None:
            codebook, indices = indexed
            yield [codebook], indices

    def _row_skipping(
        self, options: EncodeOptions, levels: npt.NDArray[np.int32]
    ) -> Iterator[bool]:
        yield False
        # In blocks, a skipped row moves the dq state otherwise than its zeros would: the quantizer
        # does not know that.
        possible = self._context.profile == 1 and not (options.dq and options.scan_order)
        wanted = options.row_skipping and possible and min(levels.shape) > 1
        if wanted and not levels.any(axis=1).all():
            yield True


def skippable_bytes(quantized: QuantizedTensor) -> float:
    """Return about how many bytes rows of zeros take, if the options let us skip them."""
    options, levels = quantized.options, quantized.levels
    rows, cols = matrix_shape(quantized.parameter.shape)
    if min(rows, cols) < 2 or (options.dq and options.scan_order):
        return 0.0
    if options.row_skipping != "auto" or not (zero_rows := count_zero_rows(levels, rows)):
        return 0.0
    zeros = levels.size - int(np.count_nonzero(levels))
    # Within such a row the contexts soon expect zeros, above all if there are many elsewhere.
    bits = min(-_INFORMATION_LEFT * math.log2(zeros / levels.size), _MOST_BITS_OF_ZERO)
    return zero_rows * cols * bits / 8
