"""Streams of a hundred bytes or two, which together use whatever a stream can have."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from fuzz_support import head, quietly_encoded, ramp

import nnr_codec
from nnr_codec import bitstream as nnr
from nnr_codec.encoding.unit_encoder import CodedLevels, encode_data_unit


class SmallStream(NamedTuple):
    """A stream, and the one before it in its series, if there is one."""

    data: bytes
    parents: tuple[bytes, ...] = ()


def unit(
    name: str, levels: np.ndarray, context: nnr.Context, codebook: bool = False, **more: Any
) -> bytes:
    """A data unit of these integers; with a codebook: of indices of these."""
    record = nnr.DataUnit(names=[name], tensor_dimensions=list(levels.shape), **more)
    if codebook:
        values = [-9, -2, 0, 1, 7, 300]
        record.codebooks = [nnr.Codebook(codebook_egk=1, zero_offset=2, values=values)]
    return encode_data_unit(record, {"weight": CodedLevels(levels)}, context)


def block(profile: int, scan_order: int = 0, **more: Any) -> bytes:
    """A BLOCK with all vectors: of a weight, or decomposed."""
    start, context = head(profile)
    factors = "decomposition_rank" in more
    names = ["x_G", "x_H"] if factors else ["x"]
    names += ["x.ls", "x.beta", "x.gamma", "x.mean", "x.var", "x.bias"]
    record = nnr.DataUnit(
        nnr.PayloadType.BLOCK,
        names,
        dq_flag=1,
        compressed_parameter_types=15 if factors else 14,
        tensor_dimensions=[6, 2, 3],
        scan_order=scan_order,
        **more,
    )
    sizes = {"G": 12, "H": 12, "weight": 36}
    coded = {r: CodedLevels(ramp(sizes.get(r, 6), modulus=5)) for r in record.coding_roles()}
    return start + encode_data_unit(record, coded, context)


def mapped(
    entries: dict[str, Any], kind: nnr.PayloadType = nnr.PayloadType.INT, **integers: np.ndarray
) -> SmallStream:
    """Units of a kind, and a model map before them."""
    start, context = head()
    text = json.dumps({"nnr_model_map": 1, **entries}, separators=(",", ":"))
    units = [unit(n, values, context, payload_type=kind) for n, values in integers.items()]
    return SmallStream(start + nnr.write_record(nnr.Topology(topology_data=text)) + b"".join(units))


def meaning(dtype: str = "float32", **entry: Any) -> dict[str, Any]:
    """The map of a tensor w whose integers have a meaning."""
    return {"tensors": {"w": {"dtype": dtype, **entry}}}


@cache
def small_streams() -> dict[str, SmallStream]:
    """All of them, by what they are made for."""
    start, context = head()
    second, second_context = head(1)
    integers, vector = ramp(5, 7), ramp(6, modulus=5)
    streams = {
        "dq": SmallStream(start + unit("w", integers, context, dq_flag=1)),
        "uniform": SmallStream(start + unit("w", integers, context)),
        "second edition": SmallStream(second + unit("w", integers, second_context, dq_flag=1)),
        "entry points": SmallStream(start + unit("w", ramp(17, 3), context, scan_order=1)),
        "codebook": SmallStream(start + unit("w", ramp(5, 7, modulus=4), context, codebook=True)),
        "block": SmallStream(block(0)),
        "block of blocks": SmallStream(block(1, scan_order=1)),
        "decomposed": SmallStream(block(1, decomposition_rank=2, g_number_of_rows=6)),
        "integers": mapped({}, a=integers, b=vector),
        **meanings(),
        **made_of_others(),
        **series(),
    }
    streams["raw"] = SmallStream(start + nnr.write_data_unit(raw_record(), bytes(40), context))
    streams["headers"] = SmallStream(headers())
    return streams


def raw_record() -> nnr.DataUnit:
    return nnr.DataUnit(nnr.PayloadType.RAW_FLOAT, ["w"], tensor_dimensions=[2, 5])


def headers() -> bytes:
    """Parameter sets, quantization data, a list of names, a private unit, and an indexed name."""
    start, context = head(mps_topology_indexed_reference_flag=1)
    lps = nnr.LayerParameterSet(lps_qp_density=3, lps_quantization_parameter=-20)
    names = nnr.Topology(nnr.TopologyFormat.REFLIST, names=["a", "w"])
    context = nnr.Context(0, context.mps, lps, reference_list=("a", "w"))
    record = nnr.DataUnit(indices=[1], names=["w"], tensor_dimensions=[5, 7])
    data = encode_data_unit(record, {"weight": CodedLevels(ramp(5, 7))}, context)
    others = [lps, names, nnr.QuantizationData(quantization_data="none")]
    units = b"".join(map(nnr.write_record, others))
    return start + units + nnr.write_unit(40, b"private") + data


def meanings() -> dict[str, SmallStream]:
    """A stream for each meaning that the map gives to integers."""
    matrix = ramp(4, 6, modulus=7)
    scales = np.array([0x3F80, 0x80, -0x40], np.int32) << 16  # bits of 1, 4 and 1/2
    return {
        "scale": mapped(meaning(scale=0.0123, negative_zero=-1), w=matrix),
        "scales": mapped(
            meaning("float16", scales="s", run=2, scale_dtype="float32"), s=scales, w=matrix
        ),
        "table": mapped(meaning("float16", table="t"), t=ramp(7) * 300, w=matrix),
        "bits": mapped(meaning("bfloat16", bits=32000), w=matrix),
        "low": mapped(meaning("int64", low="l"), l=matrix * 99999, w=matrix),
        "low and bits": mapped(meaning("float64", low="l", bits=2**31), l=matrix, w=matrix),
        "mantissas": mapped(meaning("float16", mantissas="m", bits=15), m=matrix * 30, w=matrix),
        "fields": mapped(meaning("uint8", fields=4, shape=[4, 3]), w=matrix),
    }


def made_of_others() -> dict[str, SmallStream]:
    """Products, ties, empty tensors, an order and texts."""

    def product(form: str, **factors: np.ndarray) -> SmallStream:
        weight = {"form": form, "shape": [4, 3, 2, 2], "factors": list(factors)}
        entries = {"factorizations": {"x": weight}}
        return mapped(entries, nnr.PayloadType.FLOAT, **factors)

    cp = [ramp(size, 2, modulus=5) for size in (4, 3, 2, 2)]
    shapes = [(3, 2), (2, 2, 2), (2, 2, 2), (4, 2)]
    ht2 = dict(zip("abcd", (ramp(*shape, modulus=5) for shape in shapes), strict=True))
    joint = dict(zip("abcd", [ramp(6, 2), ramp(2, 8)] * 2, strict=True))
    tucker = {"a": ramp(2, 2, 2, 2, modulus=5), "b": ramp(4, 2), "c": ramp(3, 2)}
    extras = [
        {"name": "e", "dtype": "int8", "shape": [0, 3]},
        {"name": "t", "after": "b", "tied_to": "a"},
    ]
    return {
        "low rank": product("lr", a=ramp(4, 2), b=ramp(2, 12, modulus=5)),
        "cp": product("cp", **dict(zip("abcd", cp, strict=True))),
        "ht2": product("ht2", **ht2),
        "tucker2": product("tucker2", **tucker),
        "joint": product("joint_binary", **joint),
        "ties and empties": mapped({"extras": extras}, a=ramp(3, 2), b=ramp(4)),
        "order and texts": mapped(
            {"order": "name", "metadata": {"author": "é", "k": "v"}}, a=ramp(3, 2), b=ramp(4)
        ),
    }


def series() -> dict[str, SmallStream]:
    """An update and its parent."""
    rng = np.random.default_rng(0)
    options = nnr_codec.EncodeOptions(qp=-4, profile=1)
    weights = rng.normal(0, 1, (9, 12)).astype(np.float32)
    first = quietly_encoded({"w": weights}, options=options)
    update = quietly_encoded({"w": 2 * weights}, options=options, parents=[first])
    return {"parent": SmallStream(first), "update": SmallStream(update, (first,))}
