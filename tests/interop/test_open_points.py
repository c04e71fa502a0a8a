"""What the reference does with syntax that it never writes: the evidence behind spec/errata.md.

Each case is a bitstream of ours. Either the reference decodes it to what we decode, or it refuses
it, and then what it said is pinned here: a test that fails tells of a changed reference or of a
changed understanding.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from building import floats, head, random_levels, unit
from comparison import check_stream
from peer import Peer, PeerFailure

from nnr_codec import decode
from nnr_codec.bitstream import (
    CompressionFormat,
    Context,
    DataUnit,
    EntryPoint,
    LayerParameterSet,
    ModelParameterSet,
    NodeId,
    Parent,
    ParentType,
    PayloadType,
    PruningEntry,
    QuantizationData,
    SparsificationEntry,
    StartUnit,
    Topology,
    TopologyFormat,
    entry_point_count,
    parse_units,
    write_data_unit,
    write_record,
    write_unit,
)
from nnr_codec.bitstream.unit_layout import ParentData
from nnr_codec.decoding.unit_decoder import decode_data_unit
from nnr_codec.encoding.unit_encoder import CodedLevels, encode_data_unit

pytestmark = pytest.mark.interop

PLAIN = Context(0, ModelParameterSet())
SIGNALLING = Context(1, ModelParameterSet(mps_parent_signalling_enabled_flag=1))
SHAPE = (12, 8)


def _data(context: Context, name: str = "w", **fields: object) -> bytes:
    levels = random_levels(np.random.default_rng(1), SHAPE, 2.0)
    return unit(floats(name, SHAPE, **fields), {"weight": levels}, context, qp=-10)


def _with_mps(**fields: object) -> bytes:
    context = Context(0, ModelParameterSet(**fields))  # type: ignore[arg-type]
    return head(context) + _data(context)


def _start() -> bytes:
    return write_record(StartUnit()) + write_record(ModelParameterSet())


def _with_topology(*arguments: object) -> bytes:
    topology = Topology(*arguments)  # type: ignore[arg-type]
    return _start() + write_record(topology) + _data(PLAIN)


def _payload(unit: bytes) -> memoryview:
    *_, parsed = parse_units(head(PLAIN) + unit)
    return parsed.payload


def _one_column(entry_points: int) -> bytes:
    """A matrix of one column with a scan order, its entry points empty: it has no block rows."""
    shape = (40, 1)
    levels = random_levels(np.random.default_rng(2), shape, 2.0)
    coded = encode_data_unit(floats("w", shape), {"weight": CodedLevels(levels, -10)}, PLAIN)
    record = floats("w", shape, scan_order=1, entry_points=[EntryPoint()] * entry_points)
    assert entry_point_count(record) == entry_points
    return head(PLAIN) + write_data_unit(record, _payload(coded), PLAIN)


ACCEPTED = {
    "qp of the parameter set": lambda: _with_mps(mps_quantization_parameter=-37),
    "an empty performance map": lambda: _with_mps(sparsification_performance_map=[]),
    "text as UNREC topology": lambda: _with_topology(0, 0, '{"a": [1, "\u00fc"]}'),
    "text as PyTorch topology": lambda: _with_topology(TopologyFormat.PYT, 0, "net"),
    "text as TensorFlow topology": lambda: _with_topology(TopologyFormat.TEF, 0, "net"),
    "a long topology": lambda: _with_topology(0, 0, "x" * 60000),
    "no topology": lambda: _start() + _data(PLAIN),
    "topology behind the data": lambda: head(PLAIN) + _data(PLAIN) + write_record(Topology()),
    "no unary length": lambda: head(PLAIN) + _data(PLAIN, cabac_unary_length_minus1=None),
    "parameter types of a FLOAT unit": lambda: (
        head(PLAIN) + _data(PLAIN, compressed_parameter_types=14)
    ),
    "scan order with one column": lambda: _one_column(4),
    "an empty name": lambda: head(PLAIN) + _data(PLAIN, ""),
    "factor letters inside a name": lambda: head(PLAIN) + _data(PLAIN, "a_Gb_H.w"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(peer: Peer, case: str) -> None:
    assert len(check_stream(peer, ACCEPTED[case]())) == 1


def _after_head(extra: bytes, context: Context = PLAIN) -> bytes:
    return head(PLAIN) + extra + _data(context)


def _lps() -> bytes:
    lps = LayerParameterSet(lps_quantization_parameter=16)
    return _after_head(write_record(lps), replace(PLAIN, lps=lps))


REFUSED = {
    "layer parameter set": (_lps, "lps_decomposition_performance_map_flag"),
    "quantization data": (
        lambda: _after_head(write_record(QuantizationData())),
        "not yet implemented",
    ),
    "private unit": (lambda: _after_head(write_unit(40, b"abc")), "40 is not specified"),
    "sparsification map": (
        lambda: _with_mps(sparsification_performance_map=[SparsificationEntry()]),
        "array element",
    ),
    "pruning map": (
        lambda: _with_mps(pruning_performance_map=[PruningEntry()]),
        "array element",
    ),
    "ONNX topology": (lambda: _with_topology(TopologyFormat.ONNX, 0, b"abc"), "nnr_unit_size"),
    "deflated topology": (
        lambda: _with_topology(0, CompressionFormat.DEFLATE, b"abc"),
        "nnr_unit_size",
    ),
    "reference list": (
        lambda: _with_topology(TopologyFormat.REFLIST, 0, "", ["w", "v"]),
        "REFLIST",
    ),
    "a name that ends like a factor's": (lambda: head(PLAIN) + _data(PLAIN, "x_G"), "Dimensions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(peer: Peer, case: str) -> None:
    """The reference alone: for us they are valid."""
    build, message = REFUSED[case]
    stream = build()
    assert len(decode(stream)) == 1
    with pytest.raises(PeerFailure, match=message):
        peer.decode(stream)


def test_integers_with_dq_flag(peer: Peer) -> None:
    """The reference ignores the flag in INT units: the codeword has to be one without it."""
    levels = random_levels(np.random.default_rng(4), SHAPE, 3.0)
    record = DataUnit(PayloadType.INT, ["i"], tensor_dimensions=list(SHAPE))
    coded = encode_data_unit(record, {"weight": CodedLevels(levels)}, PLAIN)
    record = replace(record, dq_flag=1)
    data = write_data_unit(record, _payload(coded), PLAIN)
    assert np.array_equal(peer.decode(head(PLAIN) + data)["i"].reshape(-1), levels)


def _series(base: Context, node_id: NodeId | None, parent: Parent, depth: int) -> list[bytes]:
    """A stream with or without a node id, and an update of it."""
    rng = np.random.default_rng(5)
    first = encode_data_unit(
        floats("w", SHAPE, node_id=node_id),
        {"weight": CodedLevels(random_levels(rng, SHAPE, 1.5), -10)},
        base,
    )
    *_, parsed = parse_units(head(base) + first)
    (tensor,) = decode_data_unit(parsed)
    integers = tensor.integers
    assert integers is not None
    second = encode_data_unit(
        floats("w", SHAPE, node_id=NodeId(0, 0, depth), parent=parent),
        {"weight": CodedLevels(random_levels(rng, SHAPE, 1.0), -10)},
        SIGNALLING,
        lambda _name, _elements: ParentData(integers, (integers != 0).astype(np.uint8)),
    )
    return [head(base) + first, head(SIGNALLING) + second]


TEMPORAL = Parent(temporal_context_modeling_flag=1)


@pytest.mark.parametrize("signalling", [0, 1])
@pytest.mark.parametrize("depth", [0, 1])
def test_base_of_a_series(peer: Peer, signalling: int, depth: int) -> None:
    """It needs node ids; parent signalling it does not need, and its depth is not looked at."""
    base = Context(1, ModelParameterSet(mps_parent_signalling_enabled_flag=signalling))
    check_stream(peer, *_series(base, NodeId(0, 0, depth), TEMPORAL, 2))


@pytest.mark.parametrize("profile", [0, 1])
def test_base_without_node_ids(peer: Peer, profile: int) -> None:
    streams = _series(Context(profile, ModelParameterSet()), None, TEMPORAL, 2)
    assert "w" in decode(streams[1], parents=streams[:1])
    with pytest.raises(PeerFailure, match="device_id"):
        peer.decode(*streams)


@pytest.mark.parametrize("depth", [1, 3])
def test_depth_of_an_update(peer: Peer, depth: int) -> None:
    """With temporal contexts the reference wants the parent's depth and one."""
    streams = _series(SIGNALLING, NodeId(0, 0, 1), TEMPORAL, depth)
    with pytest.raises(PeerFailure, match="put_node_depth"):
        peer.decode(*streams)


@pytest.mark.parametrize("temporal", [0, 1])
@pytest.mark.parametrize(
    ("kind", "digest"),
    [(ParentType.PAYLOAD_SHA256, hashlib.sha256), (ParentType.PAYLOAD_SHA512, hashlib.sha512)],
)
def test_parents_by_digest(peer: Peer, kind: ParentType, digest: object, temporal: int) -> None:
    """Any digest will do: it is not verified."""
    parent = Parent(kind, temporal, digest=digest(b"of nothing").digest())  # type: ignore[operator]
    check_stream(peer, *_series(SIGNALLING, NodeId(0, 0, 1), parent, 2))
