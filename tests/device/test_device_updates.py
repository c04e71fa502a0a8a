"""Updates of a base and quality layers: the device decoder beside nnr_codec."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from device_support import (
    BASE,
    CORPUS,
    END,
    FACTORIZED,
    FAIL_ALLOCATIONS,
    FED,
    FUNCTION,
    LAYERS,
    MEMORY,
    MISSING_PARENT,
    ODD_PIECES,
    HostBuild,
    Request,
    ask,
    damaged,
    differences,
)
from small_streams import SmallStream
from update_streams import OPTIONS, layered, model, series, update_requests

import nnr_codec
from nnr_codec.factorization.forms import JointRight

WAYS = (MEMORY, FUNCTION, FED | ODD_PIECES)
DIGEST = re.compile(rb'"digest":"([^"]*)')


@pytest.fixture(scope="module", params=["quantized", "lossless"])
def streams(request: pytest.FixtureRequest) -> list[bytes]:
    return series(replace(OPTIONS, lossless=request.param == "lossless"))


@pytest.mark.parametrize("way", WAYS)
def test_sums(host: HostBuild, way: int) -> None:
    assert differences([host.harness], update_requests(way)) == []


@pytest.mark.parametrize("way", WAYS)
def test_quality_layers(host: HostBuild, way: int) -> None:
    """All of them; and of a file that is cut, those that are whole."""
    data = layered()
    requests = [Request(data, (), way | LAYERS)]
    requests += [
        Request(data[:size], (), way | LAYERS) for size in range(len(data) - 50, len(data))
    ]
    requests.append(Request(data + b"\0", (), way | LAYERS))
    assert differences([host.harness], requests) == []


def test_the_first_layer_alone_needs_no_series(host: HostBuild) -> None:
    (answer,) = ask([host.harness], [Request(layered())])
    assert answer.status == MISSING_PARENT  # of the second layer, which was asked for


def test_the_corpus(host: HostBuild) -> None:
    """But for a base of another digest: the device does not form it."""
    requests = []
    for path in sorted(CORPUS.glob("*/*/case.json")):
        case = json.loads(path.read_text())
        if "base" in case and path.parent.name != "another_model":
            files = [*case["base"], "stream.nnr"]
            *base, stream = [(path.parent / file).read_bytes() for file in files]
            requests += [Request(stream, tuple(base), way | BASE | LAYERS) for way in WAYS]
    assert len(requests) > 60
    assert differences([host.harness], requests) == []


def damaged_updates(streams: list[bytes], every: int) -> list[Request]:
    """But for damage of the models' digests, which the device does not form."""
    requests = []
    for data, base, flag in ((streams[1], (streams[0],), BASE), (layered(), (), LAYERS)):
        digests = set(DIGEST.findall(data))
        requests += [
            request._replace(options=request.options & ~FACTORIZED | flag)
            for request in damaged(SmallStream(data, base), every)
            if set(DIGEST.findall(request.stream)) <= digests
        ]
    return requests


def test_some_damage(host: HostBuild, streams: list[bytes]) -> None:
    requests = damaged_updates(streams, every=97)
    assert len(requests) > 300
    assert differences([host.harness], requests) == []


@pytest.mark.sanitizer
def test_damage(sanitized: Path, streams: list[bytes]) -> None:
    assert differences([sanitized], damaged_updates(streams, every=7)) == []


def test_failing_allocations(host: HostBuild, streams: list[bytes]) -> None:
    for way in WAYS:
        requests = [
            Request(streams[1], (streams[0],), way | BASE | FAIL_ALLOCATIONS),
            Request(layered(), (), way | LAYERS | FAIL_ALLOCATIONS),
        ]
        assert [answer.status for answer in ask([host.harness], requests)] == [END, END]


def test_another_base_is_refused(host: HostBuild, streams: list[bytes]) -> None:
    other = nnr_codec.encode(model(1), options=OPTIONS).data or b""
    requests = [
        Request(streams[1], (), BASE),
        Request(streams[1], (other,), BASE),
        Request(streams[2], (streams[0],), BASE),
    ]
    answers = ask([host.harness], requests)
    assert [answer.status for answer in answers] == [MISSING_PARENT] * 3


def test_factors(host: HostBuild) -> None:
    """As factors they are added; products of differences are none."""
    rng = np.random.default_rng(0)
    streams: list[bytes] = []
    for _ in range(2):
        factors = [rng.normal(0, 1, shape).astype(np.float32) for shape in ((12, 3), (3, 20))]
        weight = JointRight((20, 12), tuple(factors))
        result = nnr_codec.encode(
            {"w": weight.to_dense()}, factorizations={"w": weight}, base=streams
        )
        streams.append(result.data or b"")
    request = Request(streams[1], (streams[0],), BASE | FACTORIZED)
    assert differences([host.harness], [request]) == []
