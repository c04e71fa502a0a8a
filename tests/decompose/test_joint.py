"""Joint decomposition: which layers share, and how well the three schemes do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from decompose_support import Array, random_kernel, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from nnr_codec import InvalidModel, InvalidOptions
from nnr_codec.decompose.algorithms.joint import joint, joint_parameters, joint_rank
from nnr_codec.decompose.joint_groups import joint_groups
from nnr_codec.factorization.forms import FORMS, FactoredWeight
from nnr_codec.factorization.joint_forms import unfold, unfolded_size

SCHEMES = ("right", "left", "binary")


def group(shape: tuple[int, ...], count: int, seed: int = 0) -> dict[str, Array]:
    return {f"block.{i}.weight": random_kernel(shape, seed + i) for i in range(count)}


def total_error(weights: dict[str, Array], forms: dict[str, FactoredWeight]) -> float:
    squares = [
        np.sum((weights[name].astype(np.float64) - form.to_dense()) ** 2)
        for name, form in forms.items()
    ]
    return float(sum(squares)) ** 0.5


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.data())
def test_full_rank_reproduces(shape: list[int], data: st.DataObject) -> None:
    scheme = data.draw(st.sampled_from(SCHEMES))
    weights = group(tuple(shape), data.draw(st.integers(2, 4)), data.draw(st.integers(0, 99)))
    rows, columns = unfolded_size(shape)
    most = {"right": columns, "left": rows, "binary": min(rows, columns)}[scheme]
    forms = joint(weights, most, scheme)
    assert list(forms) == list(weights)
    for name, weight in weights.items():
        assert forms[name].form == f"joint_{scheme}"
        assert forms[name].shape == tuple(shape)
        if scheme != "binary" or rows == columns:
            assert relative_error(weight, forms[name].to_dense()) < 1e-5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shared_factors_are_one_array(scheme: str) -> None:
    forms = list(joint(group((6, 5, 3, 3), 3), 4, scheme).values())
    for index in range(len(forms[0].factors)):
        shared = all(form.factors[index] is forms[0].factors[index] for form in forms)
        assert shared == (index in FORMS[f"joint_{scheme}"].shared)
    arrays = {id(factor): factor.size for form in forms for factor in form.factors}
    assert sum(arrays.values()) == joint_parameters([(6, 5, 3, 3)] * 3, 4, scheme)


@pytest.mark.parametrize(("scheme", "axis"), [("right", 0), ("left", 1)])
def test_one_product_is_the_best_of_its_rank(scheme: str, axis: int) -> None:
    """The error is that of the truncated SVD of the members side by side (Eckart and Young)."""
    weights = group((6, 5, 3, 3), 3)
    stack = np.concatenate([unfold(w).astype(np.float64) for w in weights.values()], axis=axis)
    for rank in (1, 5, 11):
        singular = np.linalg.svd(stack, compute_uv=False)
        error = total_error(weights, joint(weights, rank, scheme))
        assert error == pytest.approx(np.linalg.norm(singular[rank:]), rel=1e-5)


def test_binary_finds_what_was_made_of_two_branches() -> None:
    rng = np.random.default_rng(4)
    v, u = rng.normal(size=(3, 18)), rng.normal(size=(15, 3))
    weights = {}
    for i in range(4):
        matrix = rng.normal(size=(15, 3)) @ v + u @ rng.normal(size=(3, 18))
        weights[f"{i}"] = matrix.reshape(3, 5, 3, 6).transpose(3, 1, 0, 2).astype(np.float32)
    forms = joint(weights, 3, "binary")
    norm = np.sqrt(sum(float(np.sum(w**2.0)) for w in weights.values()))
    assert total_error(weights, forms) < 0.01 * norm
    for scheme in ("right", "left"):
        assert total_error(weights, joint(weights, 6, scheme)) > 0.05 * norm


def test_binary_beats_one_branch_of_its_rank_and_errors_fall() -> None:
    weights = group((12, 12, 3, 3), 3)
    errors = [total_error(weights, joint(weights, rank, "binary")) for rank in (1, 4, 9, 18, 30)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    for scheme in ("right", "left"):
        assert errors[1] < total_error(weights, joint(weights, 4, scheme))


def test_a_first_block_of_half_the_depth_shares_on_the_right_alone() -> None:
    weights = {"first": random_kernel((8, 4, 3, 3)), "second": random_kernel((8, 8, 3, 3), 1)}
    forms = joint(weights, 24, "right")
    assert forms["first"].factors[1] is forms["second"].factors[1]
    for name, weight in weights.items():
        assert relative_error(weight, forms[name].to_dense()) < 1e-6
    for scheme in ("left", "binary"):
        with pytest.raises(InvalidModel, match="shares no factor"):
            joint(weights, 4, scheme)


def test_same_input_same_output() -> None:
    weights = group((6, 5, 3, 3), 3)
    for scheme in SCHEMES:
        first, second = joint(weights, 4, scheme), joint(weights, 4, scheme)
        for name, form in first.items():
            assert all(map(np.array_equal, form.factors, second[name].factors))


def test_rank_of_a_fraction() -> None:
    shapes = [(64, 64, 3, 3)] * 5
    for scheme, unit in (("right", 6 * 192), ("left", 6 * 192), ("binary", 12 * 192)):
        rank = joint_rank(shapes, 0.1, scheme)
        assert rank == int(0.1 * 5 * 36864 / unit)
        kept = joint_parameters(shapes, rank, scheme)
        assert kept <= 0.1 * 5 * 36864 < joint_parameters(shapes, rank + 1, scheme)
    assert joint_rank(shapes, 1e-9, "right") == 1
    assert joint_rank(shapes, 99.0, "left") == 192
    with pytest.raises(InvalidOptions, match="fraction"):
        joint_rank(shapes, 0.0, "left")


def test_errors() -> None:
    weights = group((4, 4, 3, 3), 2)
    for rank in (0, 13):
        with pytest.raises(InvalidOptions, match=r"block\.0\.weight"):
            joint(weights, rank, "right")
    with pytest.raises(InvalidOptions, match="joint_scheme"):
        joint(weights, 2, "both")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptions, match="only 1"):
        joint(dict(list(weights.items())[:1]), 2, "left")
    with pytest.raises(InvalidModel, match=r"block\.1\.weight.*zeros"):
        joint({**weights, "block.1.weight": np.zeros((4, 4, 3, 3), np.float32)}, 2, "left")
    with pytest.raises(InvalidModel, match=r"'odd'.*shares no factor"):
        joint({**weights, "odd": random_kernel((5, 4, 3, 3))}, 2, "right")


def resnet(blocks: int) -> dict[str, tuple[int, ...]]:
    """The weights of a CIFAR ResNet."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3), "bn1.weight": (16,)}
    inputs = 16
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(blocks):
            shapes[f"layer{stage}.{block}.conv1.weight"] = (width, inputs, 3, 3)
            shapes[f"layer{stage}.{block}.conv2.weight"] = (width, width, 3, 3)
            if inputs != width:
                shapes[f"layer{stage}.{block}.downsample.0.weight"] = (width, inputs, 1, 1)
            inputs = width
    return {**shapes, "linear.weight": (10, 64)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_groups_of_a_resnet(scheme: str) -> None:
    groups = joint_groups(resnet(3), scheme)
    assert [names[0].split(".")[0] for names in groups] == ["layer2", "layer3"]
    names = [f"layer3.{block}.conv{i}.weight" for block in range(3) for i in (1, 2)]
    assert groups[1] == tuple(names if scheme == "right" else names[1:])


def test_groups_of_other_models() -> None:
    transformer: dict[str, tuple[int, ...]] = {"embeddings.weight": (512, 8)}
    for layer in range(2):
        transformer[f"encoder.layer.{layer}.query.weight"] = (8, 8)
        transformer[f"encoder.layer.{layer}.key.weight"] = (8, 8)
        transformer[f"encoder.layer.{layer}.intermediate.weight"] = (32, 8)
        transformer[f"encoder.layer.{layer}.output.weight"] = (8, 32)
    groups = joint_groups(transformer, "left")
    assert [len(names) for names in groups] == [4, 2, 2]
    mobile: dict[str, tuple[int, ...]] = {"conv0.weight": (8, 3, 3, 3)}
    for block in range(3):
        mobile[f"features.{block}.dw.weight"] = (16, 1, 3, 3)
        mobile[f"features.{block}.pw.weight"] = (16, 16, 1, 1)
    (only,) = joint_groups(mobile, "right")
    assert only == tuple(f"features.{block}.pw.weight" for block in range(3))
    named = {"a": (3, 3), "stack2.conv1.weight": (4, 4, 3, 3), "stack2.conv2.weight": (4, 4, 3, 3)}
    assert joint_groups(named, "right") == (("stack2.conv1.weight", "stack2.conv2.weight"),)
    assert joint_groups({}, "right") == ()
