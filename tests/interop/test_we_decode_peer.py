"""We decode the reference's bitstreams to exactly the tensors that it decodes.

Its bitstreams in tests/golden/peer_vectors, which need no reference, are in test_peer_vectors.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import check_series, check_stream
from hypothesis import given, settings
from hypothesis import strategies as st
from peer import Peer
from random_models import Arrays, models, peer_options, sparse
from safetensors.numpy import load_file

pytestmark = pytest.mark.interop

seeds = st.integers(0, 2**32)


@settings(settings.get_profile("interop"), max_examples=400)
@given(model=models(), options=peer_options())
def test_random_models(peer: Peer, model: Arrays, options: dict[str, Any]) -> None:
    check_stream(peer, peer.encode(model, **options))


@settings(settings.get_profile("interop"), max_examples=100)
@given(seed=seeds, options=peer_options(), scan_order=st.integers(1, 4), count=st.integers(1, 3))
def test_scan_orders(
    peer: Peer, seed: int, options: dict[str, Any], scan_order: int, count: int
) -> None:
    """Of matrices: its encoder fails on tensors of one row or column."""
    rng = np.random.default_rng(seed)
    shapes = [tuple(int(n) for n in rng.integers(2, (100, 30))) for _ in range(count)]
    model = {f"w{i}": (0.2 * sparse(rng, s)).astype(np.float32) for i, s in enumerate(shapes)}
    check_stream(peer, peer.encode(model, **{**options, "scan_order": scan_order}))


@settings(settings.get_profile("interop"), max_examples=100)
@given(seed=seeds, options=peer_options(), temporal=st.booleans(), history=st.booleans())
def test_series(
    peer: Peer, seed: int, options: dict[str, Any], temporal: bool, history: bool
) -> None:
    """Updates with each kind of context; its encoder leaves tensors out that are all zero."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (int(rng.integers(2, 40)), int(rng.integers(2, 30))), "b": (20,), "c": (9, 9)}
    updates = []
    for _ in range(4):
        scales = {name: 0.3 * (name == "w" or rng.random() < 0.7) for name in shapes}
        updates.append({n: (scales[n] * sparse(rng, shapes[n])).astype(np.float32) for n in shapes})
    options = {**options, "tca": temporal}
    check_series(peer, peer.encode_series(updates, history=history, **options))


@pytest.mark.parametrize("name", ["resnet20_cifar10", "mobilenetv1_025_vww96"])
@pytest.mark.parametrize("options", [{"qp": -38}, {"qp": -20, "use_dq": False, "lambda_scale": 1}])
def test_real_models(peer: Peer, models_folder: Path, name: str, options: dict[str, Any]) -> None:
    model = load_file(models_folder / f"{name}.safetensors")
    assert len(check_stream(peer, peer.encode(model, **options))) == len(model)
