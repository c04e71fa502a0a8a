"""The device decoder beside nnr_codec: the same verdicts, the same tensors to the bit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from device_support import (
    AS_INTEGERS,
    END,
    FACTORIZED,
    FAIL_ALLOCATIONS,
    FED,
    FUNCTION,
    MEMORY,
    NOTHING_READ,
    ODD_PIECES,
    HostBuild,
    Request,
    ask,
    corpus_requests,
    damaged,
    differences,
)
from small_streams import small_streams

import nnr_codec
from nnr_codec.bitstream.indexing import write_indexed
from nnr_codec.factorization.forms import JointRight

WAYS = (MEMORY, FUNCTION | FACTORIZED, FED | ODD_PIECES, AS_INTEGERS | ODD_PIECES)
MODELS = Path(__file__).parents[2] / "conformance" / "models"


@pytest.mark.parametrize("way", WAYS)
def test_the_corpus(host: HostBuild, way: int) -> None:
    """Every way of input, whole tensors and odd pieces, dense and factors, integers times step."""
    requests = corpus_requests(way)
    assert len(requests) > 470
    assert differences([host.harness], requests) == []


def test_small_streams(host: HostBuild) -> None:
    """All meanings, forms and extras of the model map; and with tables of contents."""
    streams = list(small_streams().values())
    requests = [Request(s.data, s.parents, way) for s in streams for way in WAYS]
    requests += [Request(indexed(s.data), s.parents, way) for s in streams[:25] for way in WAYS]
    assert differences([host.harness], requests) == []


def test_some_damage(host: HostBuild) -> None:
    requests = [r for s in small_streams().values() for r in damaged(s, every=13)]
    assert differences([host.harness], requests) == []


def test_a_table_of_contents_is_compared(host: HostBuild) -> None:
    """Every bit of the units behind the table, also those that decode to something else."""
    stream = small_streams()["integers"].data
    whole = indexed(stream)
    behind = len(stream) - stream.index(0, stream.index(b"{")) - 1
    size = len(whole) - behind
    requests = [Request(whole[:size])]
    for bit in range(8 * size, 8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 128 >> bit % 8
        requests.append(Request(bytes(data)))
    assert all(answer.status != END for answer in ask([host.harness], requests))


@pytest.mark.parametrize(
    ("name", "form", "carriage"),
    [
        ("digits_cnn", "none", "dc"),
        ("digits_cnn", "lr", "factors"),
        ("digits_residual", "lr", "dc"),
        ("digits_separable", "cp", "dc"),
        ("digits_separable", "tucker2", "dc"),
        ("digits_separable", "ht2", "dc"),
    ],
)
def test_trained_networks(host: HostBuild, name: str, form: str, carriage: str) -> None:
    options = nnr_codec.EncodeOptions()
    if form != "none":
        chosen = nnr_codec.options.DecompositionOptions(form, rank=0.4, carriage=carriage)
        options = nnr_codec.EncodeOptions(decomposition=chosen)
    stream = nnr_codec.encode(MODELS / f"{name}.safetensors", options=options).data
    requests = [Request(stream, (), way) for way in (FUNCTION, FACTORIZED, FED | AS_INTEGERS)]
    assert differences([host.harness], requests) == []


def test_exact_representations(host: HostBuild) -> None:
    """Element types of all kinds, as the encoder represents them."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (16, 24)).astype(np.float32)
    model = {
        "flag": values > 0,
        "scalar": np.float32(3.5).reshape(()),
        "empty": np.zeros((0, 3), np.float16),
        "half": values.astype(np.float16),
        "wide": values.astype(np.float64) / 3,
        "few": np.float32([0.1, -3, 1e-9])[rng.integers(0, 3, (16, 24))],
        "grid": (rng.integers(-100, 100, (16, 24)) * np.float32(0.0123)).astype(np.float32),
        "bytes": rng.integers(-8, 8, (16, 24)).astype(np.int8),
        "words": rng.integers(0, 2**32, (9, 5), dtype=np.uint64).astype(np.uint32),
        "long": rng.integers(-(2**60), 2**60, (7, 5)),
    }
    for lossless in (False, True):
        stream = nnr_codec.encode(model, options=nnr_codec.EncodeOptions(lossless=lossless)).data
        assert differences([host.harness], [Request(stream)]) == []


def test_ties_to_factored_weights(host: HostBuild) -> None:
    """As factors, a weight that another tensor is tied to comes under that one's name."""
    rng = np.random.default_rng(1)
    factors = [rng.normal(0, 1, shape).astype(np.float32) for shape in ((12, 3), (3, 20))]
    weight = JointRight((20, 12), tuple(factors))
    dense = weight.to_dense()
    model = {"w": dense, "tied": dense, "tied too": dense}
    stream = nnr_codec.encode(model, factorizations={"w": weight}).data
    assert set(nnr_codec.decode(stream, layers="factorized")) >= {"tied", "tied too"}
    requests = [Request(stream, (), way) for way in (MEMORY, FACTORIZED, FED | FACTORIZED)]
    assert differences([host.harness], requests) == []


def test_failing_allocations(host: HostBuild) -> None:
    """The n-th allocation fails, for every n: an error, nothing left, nothing else."""
    streams = small_streams().values()
    options = (MEMORY, FUNCTION | FACTORIZED, FED)
    ways = [way | FAIL_ALLOCATIONS for way in options]
    requests = [Request(s.data, s.parents, way) for s in streams for way in ways]
    answers = ask([host.harness], requests)
    assert all(answer.status == END and answer.allocations > 1 for answer in answers)


def test_tensors_that_nobody_reads(host: HostBuild) -> None:
    streams = small_streams().values()
    answers = ask([host.harness], [Request(s.data, s.parents, NOTHING_READ) for s in streams])
    assert {answer.status for answer in answers} == {END}


@pytest.mark.sanitizer
def test_every_truncation_and_every_bit(sanitized: Path) -> None:
    requests = [r for s in small_streams().values() for r in damaged(s)]
    assert len(requests) > 30_000
    assert differences([sanitized], requests) == []


@pytest.mark.sanitizer
def test_damage_while_allocations_fail(sanitized: Path) -> None:
    """Each of the allocations fails in turn, and nothing is left, whatever the stream."""
    requests = [
        r._replace(options=r.options | FAIL_ALLOCATIONS)
        for s in small_streams().values()
        for r in damaged(s, every=29)
    ]
    assert len(requests) > 1000
    assert differences([sanitized], requests) == []


@pytest.mark.sanitizer
def test_the_corpus_and_failing_allocations_with_sanitizers(sanitized: Path) -> None:
    for way in WAYS:
        assert differences([sanitized], corpus_requests(way, largest=10**9)) == []
    streams = small_streams().values()
    ask([sanitized], [Request(s.data, s.parents, FED | FAIL_ALLOCATIONS) for s in streams])


def indexed(stream: bytes) -> bytes:
    """The stream with a table of contents, if it has a topology unit for it."""
    output = io.BytesIO()
    try:
        write_indexed(io.BytesIO(stream), output)
    except nnr_codec.BitstreamError:
        return stream
    whole = output.getvalue()
    return whole if b'"index"' in whole else stream
