"""Ratios and energies are reached, or refused where they are out of reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from decompose_support import (
    MODEL,
    decomposed,
    forms,
    layers,
    options,
    parameters_of_stream,
    random_kernel,
    relative_error,
)

import nnr_codec
from nnr_codec import InvalidOptions
from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.decompose import Decomposition, decompose_model
from nnr_codec.decompose.algorithms.svd import low_rank
from nnr_codec.decompose.algorithms.tucker import tucker2
from nnr_codec.decompose.auto_size import LARGER

TUCKER2 = {"decompose": "tucker2"}


@pytest.mark.parametrize("ratio", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("method", ["lr", "tucker2", "ht2", "cp", "ce1", "auto"])
def test_the_ratio_is_reached(method: str, ratio: float, tmp_path: Any) -> None:
    chosen = options(method, compression_ratio=ratio)
    result = nnr_codec.encode(MODEL, options=chosen)
    before, after = parameters_of_stream(result.data or b"", tmp_path)
    assert ratio <= before / after < 1.03 * ratio


def loss(model: Mapping[str, Any], found: Decomposition) -> float:
    """Return the loss that a ratio is reached at: the log of the energy that is kept, summed up."""
    kept = (
        1 - relative_error(model[name], weight.to_dense()) ** 2
        for name, weight in found.factorizations.items()
    )
    return -sum(map(math.log, kept))


@pytest.mark.parametrize("ratio", [1.5, 7.5])
def test_the_best_forms_at_a_ratio(ratio: float) -> None:
    """Where one form suits one layer, and another form another, both are found."""
    kernel = tucker2(random_kernel((48, 48, 3, 3)), (10, 10)).to_dense()
    matrix = low_rank(random_kernel((48, 432)), 6).to_dense().reshape(48, 48, 3, 3)
    noise = [0.01 * random_kernel((48, 48, 3, 3), seed) for seed in (7, 8)]
    model = layers() | {"kernel": kernel + noise[0], "matrix": matrix + noise[1]}
    found = {
        method: decomposed(model, method, compression_ratio=ratio)
        for method in ("lr", "tucker2", "cp", "ht2", "auto")
    }
    if ratio > 2:  # nothing is left to spend on the noise
        assert forms(found["auto"]) == {"kernel": "tucker2", "matrix": "lr"}
    losses = {method: loss(model, made) for method, made in found.items()}
    assert losses["auto"] <= 1.01 * min(losses.values())


def test_a_common_fraction_of_forms_with_several_ranks() -> None:
    model = layers(a=(48, 48, 3, 3), b=(48, 48, 3, 3), c=(48, 48))
    found = decomposed(model, "ce1", compression_ratio=2.5, overrides=(("a", TUCKER2),))
    assert forms(found) == {"a": "tucker2", "b": "cp", "c": "lr"}
    whole = sum(array.size for array in model.values())
    assert 2.5 <= whole / (whole - found.saved) < 2.6
    kept = [w.parameter_count / math.prod(w.shape) for w in found.factorizations.values()]
    assert max(kept) < 1.1 * min(kept)  # a rank of c is 4 % of it


def test_single_weights_beside_the_best_forms() -> None:
    model = layers(a=(48, 48, 3, 3), b=(48, 48, 3, 3), c=(48, 48, 3, 3))
    overrides = (("a", {"decompose": "lr"}), ("b", {"decompose": "tucker2", "rank": 9}))
    found = decomposed(model, "auto", compression_ratio=2.0, overrides=overrides)
    assert forms(found)["a"] == "lr"
    assert found.factorizations["b"].ranks == (9, 9)
    whole = sum(array.size for array in model.values())
    assert 2 <= whole / (whole - found.saved) < 2.05
    # The other way round, "auto" is for the fewest bytes, as without a ratio.
    overrides = (("c", {"decompose": "auto"}),)
    found = decomposed(model, "lr", compression_ratio=1.5, overrides=overrides)
    assert found.skipped["c"] == LARGER


def test_what_other_weights_save_counts_for_the_ratio() -> None:
    model = layers(a=(64, 64), b=(64, 64), c=(64, 64))
    whole = sum(array.size for array in model.values())
    overrides = (("a", {"rank": 2}),)
    found = decomposed(model, "lr", compression_ratio=2.0, overrides=overrides)
    assert found.factorizations["a"].ranks == (2,)
    assert 2 <= whole / (whole - found.saved) < 2.05
    overrides = (("[ab]", {"rank": 1}),)
    found = decomposed(model, "lr", compression_ratio=1.5, overrides=overrides)
    assert "c" in found.skipped  # the two suffice


@pytest.mark.parametrize("method", ["lr", "ce1", "joint"])
def test_a_ratio_out_of_reach(method: str) -> None:
    model = layers(**{f"s.{i}.w": (16, 12, 3, 3) for i in range(3)})
    own = (("s.0.w", {"decompose": "lr", "rank": 2}),)
    for overrides in ((), own):
        with pytest.raises(
            InvalidOptions, match=r"compression_ratio: 500\.0: .* at most"
        ) as caught:
            decomposed(model, method, compression_ratio=500.0, overrides=overrides)
        most = float(caught.value.reason.split()[-3])
        found = decomposed(model, method, compression_ratio=0.999 * most, overrides=overrides)
        assert len(found.factorizations) == 3
        with pytest.raises(InvalidOptions, match="compression_ratio"):
            decomposed(model, method, compression_ratio=1.001 * most, overrides=overrides)


@pytest.mark.parametrize("method", ["lr", "ce1", "ht2", "joint", "auto"])
def test_a_ratio_where_nothing_is_decomposed(method: str) -> None:
    model = layers(**{f"s.{i}.w": (16, 12, 3, 3) for i in range(3)})
    for values in (
        {"lossless": True},
        {"exclude": ("*",)},
        {"overrides": (("*", {"decompose": "none"}),)},
    ):
        with pytest.raises(InvalidOptions, match=r"compression_ratio: 1\.5"):
            decomposed(model, method, compression_ratio=1.5, **values)


def test_a_ratio_beside_ranks_of_all_weights() -> None:
    model = layers(a=(64, 64), b=(64, 64))
    own = (("[ab]", {"rank": 8}),)
    found = decomposed(model, "lr", compression_ratio=3.0, overrides=own)
    assert {weight.ranks for weight in found.factorizations.values()} == {(8,)}
    reason = r"compression_ratio: 6\.0: the ranks set for single weights give 3\.7"
    with pytest.raises(InvalidOptions, match=reason):
        decomposed(model, "lr", compression_ratio=6.0, overrides=own)


def test_no_layer_is_given_up_for_the_others() -> None:
    with open_checkpoint(MODEL) as model:
        found = decompose_model(model, options("tucker2", compression_ratio=3.0))
    for name in ("conv2.weight", "conv3.weight"):
        assert min(found.factorizations[name].ranks) > 8


@pytest.mark.parametrize("method", ["lr", "tucker2", "ht2"])
@pytest.mark.parametrize("energy", [0.6, 0.85])
def test_the_energy_is_kept(method: str, energy: float) -> None:
    model = layers(w=(48, 40, 3, 3))
    u, s, v = np.linalg.svd(model["w"].reshape(48, -1), full_matrices=False)
    model["w"] = ((u * s * 0.8 ** np.arange(48)) @ v).astype(np.float32).reshape(48, 40, 3, 3)
    made = decomposed(model, method, energy=energy).factorizations["w"]
    left = relative_error(model["w"], made.to_dense()) ** 2
    if method == "lr":
        assert energy <= 1 - left < energy + 0.1
    else:  # each of the ranks keeps it
        assert left <= len(made.ranks) * (1 - energy)
