"""Which weights of a model are decomposed, and into what."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from decompose_support import (
    decomposed,
    forms,
    layers,
    near_low_rank,
    options,
    random_kernel,
    random_moment,
    relative_error,
)

import nnr_codec
from nnr_codec import InvalidOptions
from nnr_codec.calibration.moments import Calibration, InputMoments, RowLayout
from nnr_codec.decompose import decompose_model, select
from nnr_codec.decompose.algorithms.kernel import squared_error
from nnr_codec.decompose.ranks.chosen_ranks import NO_FEWER
from nnr_codec.model import Model

KINDS = layers(
    linear=(20, 30), pointwise=(16, 24, 1, 1), conv=(16, 12, 3, 3), conv1d=(16, 12, 5),
    depthwise=(16, 1, 3, 3), volume=(4, 4, 3, 3, 3), vector=(9,),
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("lr", ("lr", "lr", "lr", "lr")),
        ("cp", ("lr", "lr", "cp", "cp")),
        ("ce1", ("lr", "lr", "cp", "cp")),
        ("tucker2", ("lr", "lr", "tucker2", "tucker2")),
        ("ht2", ("lr", "lr", "ht2", "lr")),
    ],
)
def test_each_method_gives_each_layer_its_form(method: str, expected: tuple[str, ...]) -> None:
    found = decomposed(KINDS, method, rank=3)
    names = ("linear", "pointwise", "conv", "conv1d")
    wanted = dict(zip(names, expected, strict=True))
    assert forms(found) == wanted
    assert list(found.factorizations) == [name for name in KINDS if name in wanted]
    assert found.skipped["depthwise"] == "is depthwise"
    assert found.skipped["volume"] == "is of a kind of layer that is not decomposed"
    assert found.skipped["first"] == "is of the first layer"
    assert "vector" not in found.skipped
    for name, weight in found.factorizations.items():
        assert weight.shape == KINDS[name].shape
        assert set(weight.ranks) == {3}


def test_ht2_by_one_energy_has_a_rule_for_the_first_layer() -> None:
    """As published; by other amounts the first layer is too sensitive to be cut like the others."""
    assert "first" in forms(decomposed(KINDS, "ht2", energy=0.5))
    assert "first" not in forms(decomposed(KINDS, "ht2", rank=0.5))
    assert "first" not in forms(decomposed(KINDS, "lr", energy=0.5))


def test_overrides_of_single_weights() -> None:
    model = layers(a=(20, 30), b=(20, 30), c=(20, 30), d=(16, 12, 3, 3))
    overrides = (
        ("a", {"decompose": "none"}),
        ("b", {"rank": 5}),
        ("c", {"energy": 1.0}),
        ("d", {"decompose": "tucker2", "rank": 4}),
        ("first", {"decompose": "cp", "rank": 2}),
    )
    found = decomposed(model, "lr", rank=3, overrides=overrides)
    assert forms(found) == {"first": "cp", "b": "lr", "d": "tucker2"}
    assert found.factorizations["b"].ranks == (5,)
    assert found.factorizations["d"].ranks == (4, 4)
    assert found.skipped == {"c": NO_FEWER}
    # Without a method for all.
    found = decomposed(model, overrides=(("[ab]", {"decompose": "lr", "rank": 2}),))
    assert forms(found) == {"a": "lr", "b": "lr"}
    assert not found.skipped


def test_what_an_exact_name_asks_for_is_done_or_refused() -> None:
    model = layers(a=(20, 30), depthwise=(16, 1, 3, 3), b=(9,))
    found = decomposed(model, "lr", rank=25)
    assert "ranks [25] not from 1 to [20]" in found.skipped["a"]
    found = decomposed(model, "lr", rank=2, overrides=(("a*", {"rank": 25}),))
    assert "a" in found.skipped
    found = decomposed(model, "lr", rank=25, overrides=(("a", {"qp": -30}),))
    assert "a" in found.skipped  # its rank is the model's
    for name, values, reason in [
        ("a", {"rank": 25}, "'a': lr: ranks"),
        ("depthwise", {"decompose": "cp"}, "depthwise: decompose: is depthwise"),
        ("b", {"decompose": "cp"}, "b: decompose: is no weight"),
    ]:
        with pytest.raises(InvalidOptions, match=reason):
            decomposed(model, "lr", rank=2, overrides=((name, values),))
    broken = model | {"a": np.zeros_like(model["a"]), "c": np.full((20, 30), np.nan, np.float32)}
    for name, amount in (("a", {"rank": 2}), ("a", {"energy": 0.5}), ("c", {"decompose": "auto"})):
        with pytest.raises(InvalidOptions, match=f"{name}: decompose: holds"):
            decomposed(broken, "cp", rank=2, overrides=((name, amount),))
    with pytest.raises(InvalidOptions, match="a: decompose: is not quantized"):
        decomposed(model, "lr", rank=2, overrides=(("a", {"rank": 2}),), exclude=("a",))


def test_what_travels_exactly_stays_dense() -> None:
    model = layers(a=(20, 30), b=(20, 30))
    assert not decomposed(model, "lr", rank=2, lossless=True).factorizations
    found = decomposed(model, "lr", rank=2, exclude=("a",))
    assert forms(found) == {"b": "lr"}
    assert found.skipped["a"] == "is not quantized"


@pytest.mark.parametrize("method", ["lr", "ce1", "tucker2", "ht2", "cp", "joint", "auto"])
@pytest.mark.parametrize("amount", [{"rank": 2}, {"energy": 0.5}, {"compression_ratio": 1.2}])
def test_zeros_and_nan_are_skipped(method: str, amount: dict[str, Any]) -> None:
    model = layers(**{f"s.{i}.w": (16, 12, 3, 3) for i in range(4)})
    model["s.1.w"][:] = 0
    model["s.2.w"][3, 4] = np.nan
    found = decomposed(model, method, **({} if method == "auto" else amount))
    assert "NaN" in found.skipped["s.2.w"]
    assert "s.1.w" in found.skipped
    assert method == "auto" or {"s.0.w", "s.3.w"} <= set(found.factorizations)
    with pytest.warns(nnr_codec.NnrWarning, match=r"'s\.2\.w' holds NaN"):
        nnr_codec.encode(model, options=options(method, **({} if method == "auto" else amount)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("method", ["lr", "auto"])
def test_types_of_weights(dtype: Any, method: str) -> None:
    model = {"first": random_kernel((8, 8)), "w": near_low_rank().astype(dtype)}
    chosen = options(method, qp=-20, **({} if method == "auto" else {"rank": 6}))
    result = nnr_codec.encode(model, options=chosen)
    decoded = nnr_codec.decode(result.data)
    assert decoded["w"].dtype == dtype
    assert relative_error(near_low_rank(), decoded["w"].astype(np.float64)) < 0.1
    kinds = {tensor.name: tensor.kind for tensor in result.report.tensors}
    assert kinds["w"] == "lr"


def test_tied_weights_are_decomposed_once() -> None:
    plain = Model.from_arrays(layers(a=(12, 12), b=(12, 12)))
    tied = dataclasses.replace(plain["a"], name="b", tied_to="a")
    model = Model([plain["first"], plain["a"], tied])
    found = decompose_model(model, options("lr", rank=2))
    assert forms(found) == {"a": "lr"}
    assert "b" not in found.skipped
    result = nnr_codec.encode(model, options=options("lr", rank=2))
    decoded = nnr_codec.decode(result.data)
    assert list(decoded) == ["first", "a", "b"]
    assert np.array_equal(decoded["a"], decoded["b"])
    with pytest.raises(InvalidOptions, match="b: decompose: is tied to 'a'"):
        decompose_model(model, options("lr", rank=2, overrides=(("b", {"decompose": "lr"}),)))


def test_a_module_tells_the_kinds() -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=2), nn.ConvTranspose2d(16, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv1d(8, 12, 3), nn.Embedding(20, 10),
    )  # fmt: skip
    model = Model.from_arrays({n: t.numpy() for n, t in module.state_dict().items()})
    found = decompose_model(model, options("cp", rank=2), module=module)
    expected = {"1.weight": "lr", "2.weight": "lr", "4.weight": "cp"}
    assert forms(found) == expected
    assert found.skipped["3.weight"] == "is depthwise"
    assert found.skipped["5.weight"] == "is of a kind of layer that is not decomposed"
    other = Model.from_arrays({"0.weight": random_kernel((8, 3, 5, 5))})
    with pytest.raises(nnr_codec.InvalidModel, match=r"'0\.weight': has the shape"):
        decompose_model(other, options("cp", rank=2), module=module)


def test_the_first_layer_is_the_modules() -> None:
    """Whatever the order of the file is: some write tensors in the order of their names."""
    nn = pytest.importorskip("torch.nn")
    module = nn.ModuleDict({"stem": nn.Linear(12, 20), "body": nn.Linear(20, 16)})
    state = {n: t.numpy() for n, t in module.state_dict().items()}
    model = Model.from_arrays(dict(sorted(state.items())))
    for given, first in ((None, "body.weight"), (module, "stem.weight")):
        found = decompose_model(model, options("lr", rank=2), module=given)
        assert found.skipped == {first: "is of the first layer"}
        assert len(found.factorizations) == 1
    # What is not in the file cannot be the first.
    model = Model.from_arrays({"body.weight": state["body.weight"]})
    found = decompose_model(model, options("lr", rank=2), module=module)
    assert found.skipped == {"body.weight": "is of the first layer"}


def test_the_first_layer_of_a_file_sorted_by_name() -> None:
    """A convolution of images is the first layer, where a file has one."""
    model = {
        "classifier": random_kernel((20, 16)),
        "features.0": random_kernel((16, 3, 5, 5)),
        "features.1": random_kernel((16, 16, 3, 3)),
    }
    assert decomposed(model, "lr", rank=2).skipped == {"features.0": "is of the first layer"}
    model["features.0"] = random_kernel((16, 1, 5, 5))  # of grey images, or depthwise
    found = decomposed(model, "lr", rank=2)
    assert found.skipped["classifier"] == "is of the first layer"


def test_layers_that_share_factors_are_the_modules() -> None:
    """The joint forms are not executed for groups and transposed convolutions."""
    nn = pytest.importorskip("torch.nn")
    from nnr_codec.layers import factorize

    def stage(*layers: Any) -> Any:
        return nn.Sequential(*layers)

    module = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 16, 3, bias=False),
            "grouped": stage(*(nn.Conv2d(32, 16, 3, groups=2, bias=False) for _ in range(3))),
            "up": stage(*(nn.ConvTranspose2d(16, 16, 3, bias=False) for _ in range(3))),
            "body": stage(*(nn.Conv2d(16, 16, 3, bias=False) for _ in range(3))),
        }
    )
    state = {n: t.numpy() for n, t in module.state_dict().items()}
    model = Model.from_arrays(dict(sorted(state.items())))
    found = decompose_model(model, options("joint", rank=4), module=module)
    assert list(found.factorizations) == [f"body.{index}.weight" for index in range(3)]
    factorize(module, found.factorizations)


def test_calibration_lowers_the_error_of_the_outputs() -> None:
    model = layers(w=(24, 12, 3, 3))
    moment = random_moment(108)
    moments = InputMoments(RowLayout((24, 12, 3, 3)), moment[None, None], 1000)
    calibration = Calibration({"w": moments}, 100)
    for method in ("lr", "tucker2", "cp"):
        plain = decomposed(model, method, rank=4).factorizations["w"]
        aware = decompose_model(
            Model.from_arrays(model), options(method, rank=4), calibration=calibration
        ).factorizations["w"]
        errors = [squared_error(model["w"], made.to_dense(), moment) for made in (aware, plain)]
        assert errors[0] < 0.9 * errors[1]
    aware = decompose_model(
        Model.from_arrays(model), options("lr", energy=0.9), calibration=calibration
    ).factorizations["w"]
    assert 0 < relative_error(model["w"], aware.to_dense(), moment) ** 2 < 0.11


def test_moments_of_groups_count_in_the_mean_however_wide_if_they_are_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = layers(w=(24, 4, 3, 3))
    moments = [random_moment(36, seed) for seed in range(3)]
    layout = RowLayout((24, 4, 3, 3), groups=3)
    of_groups = InputMoments(layout, np.stack(moments)[:, None], 1000)
    of_one = InputMoments(RowLayout((24, 4, 3, 3)), np.mean(moments, axis=0)[None, None], 1000)

    def made(inputs: InputMoments) -> Any:
        known = Calibration({"w": inputs}, 100)
        found = decompose_model(Model.from_arrays(model), options("lr", rank=4), calibration=known)
        return found.factorizations["w"].to_dense()

    expected = made(of_one)
    np.testing.assert_allclose(made(of_groups), expected)
    monkeypatch.setattr(select, "MAX_BYTES", 1000)
    np.testing.assert_allclose(made(of_groups), expected)
    in_blocks = InputMoments(layout, np.stack(moments)[:, None, :18, :18].repeat(2, 1), 1000)
    plain = decomposed(model, "lr", rank=4).factorizations["w"].to_dense()
    np.testing.assert_allclose(made(in_blocks), plain)


def test_inputs_too_wide_for_a_matrix_of_their_moments_are_not_looked_at() -> None:
    width = 20_000  # a matrix of whose moments would take 3.2 GB
    model = layers(w=(8, width))
    moments = InputMoments(RowLayout((8, width)), np.ones((1, width, 1, 1)), 1000)
    calibration = Calibration({"w": moments}, 100)
    tracemalloc.start()
    aware = decompose_model(
        Model.from_arrays(model), options("lr", rank=2), calibration=calibration
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000_000
    plain = decomposed(model, "lr", rank=2)
    for found in (aware, plain):
        assert list(found.factorizations) == ["w"]
    one, other = (found.factorizations["w"].to_dense() for found in (aware, plain))
    np.testing.assert_array_equal(one, other)
