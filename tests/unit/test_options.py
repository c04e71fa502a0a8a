"""Options of the encoder: every refusal, overrides and globs; limits of the decoder."""

from __future__ import annotations

import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec.errors import InvalidOptions, LimitExceeded
from nnr_codec.options import (
    TENSOR_OPTIONS,
    DecodeLimits,
    DecompositionOptions,
    EncodeOptions,
    escaped,
    matches_tensor,
)
from nnr_codec.options.globs import GlobIndex


def test_defaults_say_what_the_references_do() -> None:
    options = EncodeOptions()
    assert (options.qp, options.nonweight_qp, options.qp_density) == (-38, -75, 2)
    assert (options.dq, options.unary_length, options.scan_order) == (True, "auto", 0)
    assert options.lambda_scale == 0
    assert options.profile == "auto"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("qp", (-129, 128, 1.0, "1", None, True)),
        ("nonweight_qp", (-129, 128, -75.0, False)),
        ("qp_density", (-1, 8, 2.0, True)),
        ("unary_length", (0, 257, -1, 11.0, "few", None, True)),
        ("scan_order", (-1, 5, True)),
        ("lambda_scale", (-0.1, math.inf, math.nan, "1", None, True)),
        ("profile", (2, -1, "1", None, True, False)),
        ("include", ("*", (3,), 3, b"a")),
        ("exclude", ("conv*", [None], ["a", 1])),
        ("overrides", ("x", 3, ["ab"], ((3, {"qp": 1}),), {None: {}}, (("w", 3),))),
        ("decomposition", (None, 3, {"method": "lr"})),
        *(
            (flag, (0, 1, None, "yes"))
            for flag in (
                "dq",
                "search_initialization",
                "row_skipping",
                "codebook",
                "temporal_contexts",
                "history_contexts",
            )
        ),
    ],
)
def test_refusals(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(InvalidOptions) as caught:
            EncodeOptions(**{name: value})
        assert caught.value.option == name
        assert name in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    numbers = {
        "qp": np.int64(-3),
        "dq": np.bool_(False),
        "lambda_scale": np.float32(0.5),
        "profile": np.int8(1),
        "unary_length": np.uint8(4),
        "row_skipping": np.bool_(True),
        "target_size": np.float64(0.5),
    }
    options = EncodeOptions(**numbers, overrides={"w": {"dq": np.bool_(True)}})
    for name, number in numbers.items():
        assert getattr(options, name) == number
        assert type(getattr(options, name)) is type(number.item())
    assert options.overrides == (("w", {"dq": True}),)
    assert type(options.overrides[0][1]["dq"]) is bool
    for name in ("qp", "lambda_scale", "unary_length", "profile", "target_size"):
        with pytest.raises(InvalidOptions):
            EncodeOptions(**{name: np.bool_(True)})


@pytest.mark.parametrize("density", range(8))
def test_quantization_parameters_reach_as_far_as_the_density_lets_them(density: int) -> None:
    limit = 2 ** (5 + density)
    inside = min(limit - 1, 75)
    for name, other in (("qp", "nonweight_qp"), ("nonweight_qp", "qp")):
        for value in (-limit, limit - 1):
            options = EncodeOptions(**{"qp_density": density, name: value, other: -min(inside, 20)})
            assert getattr(options, name) == value
        for value in (-limit - 1, limit):
            expected = rf"{name}: {value} is not .* from {-limit} to {limit - 1}, .* {density}$"
            with pytest.raises(InvalidOptions, match=expected):
                EncodeOptions(**{"qp_density": density, name: value, other: -min(inside, 20)})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("unary_length", (1, 256, "auto")),
        ("scan_order", (0, 4)),
        ("lambda_scale", (0, 0.5, 7)),
        ("profile", ("auto", 0, 1)),
        ("include", ((), ("a", "b"))),
    ],
)
def test_ends_of_the_ranges_are_allowed(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        assert getattr(EncodeOptions(**{name: value}), name) == value


def test_row_skipping_needs_the_second_edition() -> None:
    with pytest.raises(InvalidOptions, match="row_skipping"):
        EncodeOptions(profile=0, row_skipping=True)
    with pytest.raises(InvalidOptions, match="row_skipping"):
        EncodeOptions(profile=0, overrides=(("*", {"row_skipping": True}),))
    assert EncodeOptions(profile=1, row_skipping=True).row_skipping


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EncodeOptions().qp = 0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecodeLimits().max_units = 0  # type: ignore[misc]


def test_overrides_apply_in_order_and_merge() -> None:
    options = EncodeOptions(
        qp=-20, overrides=(("*", {"dq": False}), ("conv*", {"qp": -8}), ("conv1", {"qp": -4}))
    )
    assert options.for_tensor("fc").qp == -20
    assert options.for_tensor("conv2").qp == -8
    conv1 = options.for_tensor("conv1")
    assert (conv1.qp, conv1.dq, conv1.overrides) == (-4, False, ())
    assert options.dq is True


def test_the_last_override_wins_even_if_it_is_wider() -> None:
    options = EncodeOptions(overrides=(("conv1", {"qp": -4}), ("*", {"qp": -8})))
    assert options.for_tensor("conv1").qp == -8


def test_overrides_are_checked_beforehand() -> None:
    with pytest.raises(InvalidOptions) as caught:
        EncodeOptions(overrides=(("a*", {"qp": -9}), ("conv*", {"unary_length": 0})))
    assert caught.value.option == "conv*: unary_length"
    with pytest.raises(InvalidOptions, match="whole number from -32 to 31"):
        EncodeOptions(qp_density=0, qp=-9, nonweight_qp=-9, overrides=(("*", {"qp": 32}),))


@pytest.mark.parametrize(
    "name", ["qp_density", "profile", "include", "exclude", "overrides", "quality", ""]
)
def test_overrides_know_the_options_of_a_tensor_alone(name: str) -> None:
    with pytest.raises(InvalidOptions, match="is not an option of a tensor") as caught:
        EncodeOptions(overrides=(("w", {name: 1}),))
    assert caught.value.option == f"w: {name}"
    assert all(option in str(caught.value) for option in TENSOR_OPTIONS)
    assert name not in TENSOR_OPTIONS


def test_every_tensor_option_can_be_overridden() -> None:
    other = {
        "qp": 3,
        "nonweight_qp": 4,
        "dq": False,
        "lambda_scale": 0.5,
        "unary_length": 9,
        "scan_order": 2,
        "search_initialization": False,
        "row_skipping": True,
        "codebook": True,
        "temporal_contexts": False,
        "history_contexts": False,
        "max_tensor_error": 0.5,
    }
    assert {*other, "decompose", "rank", "energy"} == set(TENSOR_OPTIONS)
    for name, value in other.items():
        options = EncodeOptions(overrides=(("w", {name: value}),))
        assert getattr(options.for_tensor("w"), name) == value
        assert getattr(options.for_tensor("v"), name) != value


def test_tensors_with_the_same_overrides_share_their_options() -> None:
    names = [f"layer{number}.weight" for number in range(6)]
    overrides = tuple((f"{name}.factor*", {"qp": np.int64(-4)}) for name in names)
    options = EncodeOptions(overrides=(("*", {"dq": False}), *overrides))
    assert type(options.overrides[1][1]["qp"]) is int
    shared = {id(options.for_tensor(f"{name}.factor{k}")) for name in names for k in (0, 1)}
    assert len(shared) == 1
    assert options.for_tensor(names[0]) is options.for_tensor("other")
    assert options.for_tensor(names[0]) == EncodeOptions(dq=False)


def test_a_rank_is_no_fraction_though_they_are_equal() -> None:
    options = EncodeOptions(
        decomposition=DecompositionOptions("lr", rank=3),
        overrides=(("a", {"rank": 1}), ("b", {"rank": 1.0})),
    )
    ranks = [options.for_tensor(name).decomposition.rank for name in "abab"]
    assert list(map(type, ranks)) == [int, float, int, float]


def test_matching_leaves_no_trace_in_the_options() -> None:
    options = EncodeOptions(overrides=(("a*", {"qp": -4}),))
    before = pickle.dumps(options)
    assert options.for_tensor("ab").qp == -4
    assert options.quantizes("ab")
    assert pickle.dumps(options) == before
    copy = pickle.loads(before)
    assert copy == options == dataclasses.replace(options)
    assert copy.for_tensor("ab").qp == -4
    assert dataclasses.replace(options, overrides=()).for_tensor("ab").qp == -38
    assert hash(EncodeOptions()) == hash(EncodeOptions(qp=-38))


@pytest.mark.parametrize(
    ("glob", "name", "expected"),
    [
        ("a[[]b", "a[b", True),
        ("a[[]b", "a[[]b", True),
        ("a[*]", "a*", True),
        ("a[*]", "ab", False),
        ("a[?]*", "a?bc", True),
        ("a.factor*", "a.factor0", True),
        ("a.factor*", "a", False),
        ("a", "a.factor12", True),
        ("a", "a.factor", False),
        ("*", "", True),
        ("a*c", "abc", True),
        ("[ab]", "b", True),
        ("[!a]", "b", True),
        ("[", "[", True),
        ("a*", "a\n", True),
        ("a", "a\n", False),
    ],
)
def test_globs_match_alone_as_together(glob: str, name: str, expected: bool) -> None:
    assert matches_tensor(name, glob) is expected
    others = ("x", "y*", "z?", glob, "w")
    assert GlobIndex(others).matching(name) == ([3] if expected else [])


@pytest.mark.parametrize("name", ["plain", "a[0]", "*", "a?b[c", "[*]"])
def test_an_escaped_name_is_exact(name: str) -> None:
    options = EncodeOptions(overrides=((escaped(name), {"decompose": "none"}),))
    assert options.names_exactly(name)
    assert not options.names_exactly(f"{name}x")
    if name != escaped(name):  # as a glob, it matches others
        assert not EncodeOptions(overrides=((name, {"decompose": "none"}),)).names_exactly(name)


@pytest.mark.parametrize("name", ["plain", "a[0]", "*", "a?b[c", "[*]"])
def test_an_escaped_name_matches_itself(name: str) -> None:
    assert matches_tensor(name, escaped(name))
    assert GlobIndex([escaped(name)]).matching(name) == [0]
    assert not matches_tensor(f"{name}x", escaped(name))


def test_a_weight_has_a_method_and_an_amount_of_its_own() -> None:
    lr = DecompositionOptions("lr", rank=3)
    overrides = (
        ("a*", {"decompose": "cp", "rank": 0.5}),
        ("ab*", {"energy": 0.9}),
        ("abc", {"decompose": "auto"}),
        ("none", {"decompose": "none"}),
        ("found", {"decompose": "auto"}),
    )
    options = EncodeOptions(decomposition=lr, overrides=overrides)
    assert options.for_tensor("x").decomposition == lr
    assert options.for_tensor("a").decomposition == DecompositionOptions("cp", rank=0.5)
    assert options.for_tensor("ab").decomposition == DecompositionOptions("cp", energy=0.9)
    assert options.for_tensor("none").decomposition.method == "none"
    assert options.for_tensor("found").decomposition == DecompositionOptions("auto")
    with pytest.raises(InvalidOptions, match="energy") as caught:
        options.for_tensor("abc")  # "auto" for size has no energy
    assert caught.value.option == "abc: energy"
    assert options.decomposes
    assert not EncodeOptions().decomposes
    assert EncodeOptions(overrides=overrides).decomposes
    assert options.names_exactly("found")
    assert not options.names_exactly("abcd")


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"method": "svd"}, "decompose"),
        ({"method": "lr"}, "decompose"),
        ({"method": "lr", "rank": 0}, "rank"),
        ({"method": "lr", "rank": True}, "rank"),
        ({"method": "lr", "rank": 1.5}, "rank"),
        ({"method": "lr", "rank": math.nan}, "rank"),
        ({"method": "lr", "rank": "much"}, "rank"),
        ({"method": "cp", "rank": "vbmf"}, "rank"),
        ({"method": "joint", "rank": "vbmf"}, "rank"),
        ({"method": "lr", "energy": 0}, "energy"),
        ({"method": "lr", "energy": 1.01}, "energy"),
        ({"method": "lr", "compression_ratio": 1}, "compression_ratio"),
        ({"method": "lr", "compression_ratio": math.inf}, "compression_ratio"),
        ({"method": "lr", "rank": 2, "energy": 0.9}, "energy"),
        ({"method": "auto", "rank": 2}, "rank"),
        ({"method": "auto", "energy": 0.9}, "energy"),
        (
            {"method": "auto", "objective": "macs", "compression_ratio": 2.0},
            "compression_ratio",
        ),
        ({"method": "auto", "objective": "speed"}, "objective"),
        ({"method": "lr", "rank": 2, "carriage": "dove"}, "carriage"),
        ({"method": "joint", "rank": 2, "joint_scheme": "both"}, "joint_scheme"),
    ],
)
def test_refused_decompositions(values: dict[str, Any], option: str) -> None:
    with pytest.raises(InvalidOptions) as caught:
        DecompositionOptions(**values)
    assert caught.value.option == option


def test_ranks_of_numpy_are_ranks() -> None:
    assert type(DecompositionOptions("lr", rank=np.int64(3)).rank) is int
    assert type(DecompositionOptions("lr", rank=np.float32(0.5)).rank) is float


@pytest.mark.parametrize(
    ("include", "exclude", "name", "expected"),
    [
        (("*",), (), "anything", True),
        ((), (), "anything", False),
        (("a*", "b*"), (), "bc", True),
        (("a*",), (), "ba", False),
        (("*",), ("*.bias",), "fc.bias", False),
        (("*.bias",), ("*",), "fc.bias", False),
        (("[ab]?",), (), "b1", True),
        (("CONV*",), (), "conv1", False),  # names have case
    ],
)
def test_globs(
    include: tuple[str, ...], exclude: tuple[str, ...], name: str, expected: bool
) -> None:
    assert EncodeOptions(include=include, exclude=exclude).quantizes(name) is expected


def test_globs_that_match_nothing_are_told_once_and_in_order() -> None:
    options = EncodeOptions(
        include=("*", "nowhere*"),
        exclude=("fc.bias", "missing", "nowhere*"),
        overrides=(("gone", {"qp": 1}), ("fc.*", {"qp": 1})),
    )
    assert options.unmatched_globs(["fc.weight", "fc.bias"]) == ["nowhere*", "missing", "gone"]
    assert options.unmatched_globs([]) == ["nowhere*", "fc.bias", "missing", "gone", "fc.*"]


VECTORS = Path(__file__).parents[1] / "golden" / "peer_vectors"


@pytest.mark.parametrize("limit", [f.name for f in dataclasses.fields(DecodeLimits)])
def test_limits_are_kept(limit: str) -> None:
    """Each limit, at 0, stops a stream that the defaults let through."""
    if limit.endswith("product_operations"):  # of the factors of a decomposed block
        stream = (VECTORS / "dc_p0_block_scan0_dq.nnc").read_bytes()
    else:
        stream = nnr_codec.encode({"w": np.ones((2, 2), np.float32)}).data
    topology = nnr_codec.bitstream.write_record(nnr_codec.bitstream.Topology(topology_data="x"))
    stream += topology
    assert nnr_codec.decode(stream)
    with pytest.raises(LimitExceeded) as caught:
        nnr_codec.decode(stream, limits=DecodeLimits(**{limit: 0}))
    assert caught.value.limit == limit
    assert caught.value.value > caught.value.allowed == 0
