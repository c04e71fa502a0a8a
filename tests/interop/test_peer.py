"""The peer object: whatever befalls its process is reported, and the next request is served."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from peer import PYTHON_VARIABLE, Peer, PeerFailure

from nnr_codec import encode

pytestmark = pytest.mark.interop


@pytest.fixture
def own_peer() -> Iterator[Peer]:
    """A peer of the test's own, with little patience."""
    python = os.environ.get(PYTHON_VARIABLE)
    if not python:
        pytest.skip(f"{PYTHON_VARIABLE} does not name the Python of an environment with nncodec")
    with Peer(python, seconds=1.0) as running:
        yield running


@pytest.mark.parametrize(
    ("fate", "kind"), [(signal.SIGKILL, "crash"), (signal.SIGSTOP, "hang"), (None, "error")]
)
def test_survives(own_peer: Peer, fate: signal.Signals | None, kind: str) -> None:
    data = encode({"w": np.ones((4, 4), np.float32)}).data
    assert own_peer.decode(data)["w"].shape == (4, 4)
    if fate is not None:
        own_peer.signal(fate)
    with pytest.raises(PeerFailure) as caught:
        own_peer.decode(b"no bitstream")
    assert caught.value.kind == kind
    assert own_peer.decode(data)["w"].shape == (4, 4)
    assert own_peer.starts == (1 if kind == "error" else 2)
