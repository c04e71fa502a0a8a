"""Weights as factors: ordinary tensors to the reference, and blocks as far as it reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from peer import Peer, PeerFailure
from safetensors.numpy import load_file
from test_peer_decodes import with_node_ids

from nnr_codec import EncodeOptions, decode, encode
from nnr_codec.bitstream import DataUnit, parse_units
from nnr_codec.decoding.unit_decoder import decode_data_unit
from nnr_codec.factorization.forms import FORMS, FactoredWeight, LowRank
from nnr_codec.options import DecompositionOptions

pytestmark = pytest.mark.interop

AS_TENSORS = DecompositionOptions(carriage="factors")


@st.composite
def factored_models(
    draw: st.DrawFn, forms: tuple[str, ...] = tuple(FORMS)
) -> dict[str, FactoredWeight]:
    """Weights of any forms, some of which share a factor."""
    weights: dict[str, FactoredWeight] = {}
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    for index in range(draw(st.integers(1, 4))):
        kind = FORMS[draw(st.sampled_from(forms))]
        shape = tuple(int(n) for n in rng.integers(1, 9, 4))
        ranks = [int(rng.integers(1, most + 1)) for most in kind.max_ranks(shape)]
        scale = float(rng.choice([0.01, 0.2, 2]))
        factors = [rng.normal(0, scale, s).astype("f4") for s in kind.factor_shapes(shape, ranks)]
        weights[f"{index}.weight"] = kind(shape, tuple(factors))
        if kind.shared and rng.random() < 0.5:
            own = [f if i in kind.shared else f + 1 for i, f in enumerate(factors)]
            weights[f"{index}.twin"] = kind(shape, tuple(own))
    return weights


@settings(settings.get_profile("interop"), max_examples=300)
@given(
    weights=factored_models(),
    dq=st.booleans(),
    scan_order=st.integers(0, 2),
    profile=st.sampled_from([0, 1]),
)
def test_factors_are_ordinary_tensors(
    peer: Peer,
    weights: dict[str, FactoredWeight],
    dq: bool,
    scan_order: int,
    profile: Literal[0, 1],
) -> None:
    model = {name: weight.to_dense() for name, weight in weights.items()}
    options = EncodeOptions(
        qp=-30, dq=dq, scan_order=scan_order, profile=profile, decomposition=AS_TENSORS
    )
    data = encode(model, options=options, factorizations=weights).data or b""
    assert_same(decode(data, layers="factorized"), peer.decode(data))


@settings(settings.get_profile("interop"), max_examples=200)
@given(weights=factored_models(("lr",)), dq=st.booleans())
def test_blocks(peer: Peer, weights: dict[str, FactoredWeight], dq: bool) -> None:
    """The integers of the factors: it fails on their product (errata E20)."""
    name, weight = next(iter(weights.items()))
    model = {name: weight.to_dense()}
    options = EncodeOptions(qp=-24, dq=dq, profile=1)
    data = encode(model, options=options, factorizations={name: weight}).data or b""
    (parsed,) = [p for p in parse_units(data) if isinstance(p.record, DataUnit)]
    ours = {t.name: t.integers for t in decode_data_unit(parsed) if t.integers is not None}
    theirs = peer.integers(with_node_ids(data))
    assert sorted(ours) == sorted(theirs) == [f"{name}_G", f"{name}_H"]
    for factor, integers in ours.items():
        assert np.array_equal(integers, theirs[factor].reshape(-1)), factor


def test_it_fails_on_products(peer: Peer) -> None:
    """Why carriage "factors" is there for low rank as well."""
    rng = np.random.default_rng(0)
    weight = LowRank((8, 6), tuple(rng.normal(0, 1, s).astype("f4") for s in ((8, 2), (2, 6))))
    model = {"w": weight.to_dense()}
    with pytest.raises(PeerFailure):
        peer.decode(encode(model, factorizations={"w": weight}).data or b"")
    options = EncodeOptions(decomposition=AS_TENSORS)
    factors = encode(model, options=options, factorizations={"w": weight}).data or b""
    assert sorted(peer.decode(factors)) == ["w.factor0", "w.factor1"]


def test_real_model(peer: Peer, models_folder: Path) -> None:
    """ResNet-20, its convolutions of half their rank: everything but the factors as ever."""
    model = load_file(models_folder / "resnet20_cifar10.safetensors")
    weights: dict[str, FactoredWeight] = {}
    for name, values in model.items():
        if values.ndim == 4:
            matrix = values.reshape(values.shape[0], -1)
            u, s, v = np.linalg.svd(matrix, full_matrices=False)
            rank, root = max(1, len(s) // 2), np.sqrt(s)
            weights[name] = LowRank(
                values.shape, ((u * root)[:, :rank], (root[:, None] * v)[:rank])
            )
    assert len(weights) > 15
    options = EncodeOptions(decomposition=AS_TENSORS)
    data = encode(model, options=options, factorizations=weights).data or b""
    assert_same(decode(data, layers="factorized"), peer.decode(data))
    assert list(decode(data)) == list(model)
