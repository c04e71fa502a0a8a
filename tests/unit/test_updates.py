"""Updates of a base: encoded, decoded, opened, for every kind of tensor and of change."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from updates_support import UNGROUPED, Arrays, assert_same, encoded, every_type, moved, two_matrices

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.bitstream.qp import step_size
from nnr_codec.errors import InvalidOptions
from nnr_codec.model import Model, Parameter

LOSSLESS = EncodeOptions(lossless=True)
QP = -38
STEP = step_size(QP, 2)


@pytest.fixture(scope="module")
def weights() -> Arrays:
    return two_matrices()


@pytest.mark.parametrize("base_options", [EncodeOptions(), LOSSLESS], ids=["lossy", "lossless"])
@pytest.mark.parametrize("options", [EncodeOptions(), LOSSLESS], ids=["lossy", "lossless"])
def test_every_type_is_updated(base_options: EncodeOptions, options: EncodeOptions) -> None:
    old = every_type()
    base, new = encoded(old, base_options), moved(every_type())
    update = encoded(new, options, base=[base])
    decoded = nnr_codec.decode(update, base=[base])
    assert list(decoded) == list(new)
    for name, values in new.items():
        assert (decoded[name].dtype, decoded[name].shape) == (values.dtype, values.shape)
    if options.lossless:
        assert_same(decoded, new)
    for name in ("bool", "int8", "uint64", "wide", "powers"):
        assert_same({name: decoded[name]}, {name: new[name]})


def test_a_model_that_stays_costs_its_map_alone() -> None:
    old = every_type()
    base = encoded(old)
    update = nnr_codec.encode(old, base=[base])
    assert len(update.data or b"") < 220
    assert not any(tensor.bytes for tensor in update.report.tensors)
    assert_same(nnr_codec.decode(update.data, base=[base]), nnr_codec.decode(base))


def test_lossless_updates_of_what_stays_cost_nothing_over_a_lossless_base() -> None:
    old = every_type()
    base = encoded(old, LOSSLESS)
    assert len(encoded(old, LOSSLESS, base=[base])) < 220


def test_chains_are_decoded_oldest_first(weights: Arrays) -> None:
    streams = [encoded(weights)]
    for seed in range(4):
        weights = moved(weights, 0.01, seed)
        streams.append(encoded(weights, base=streams))
    report = nnr_codec.encode(weights).report
    decoded = nnr_codec.decode(streams[-1], base=streams[:-1])
    for name, values in weights.items():
        error = np.square(decoded[name] - values).sum()
        assert error < 2 * sum(t.squared_error for t in report.tensors if t.name == name)


def test_errors_are_those_of_the_new_tensors(weights: Arrays) -> None:
    base, new = encoded(weights), moved(weights, 0.01)
    made = nnr_codec.encode(new, base=[base])
    decoded = nnr_codec.decode(made.data, base=[base])
    for tensor in made.report.tensors:
        error = np.square(decoded[tensor.name].astype(float) - new[tensor.name]).sum()
        assert tensor.is_difference
        assert tensor.squared_error == pytest.approx(error, rel=1e-6)
        assert tensor.energy == pytest.approx(np.square(new[tensor.name].astype(float)).sum())
        assert tensor.qp == QP


def test_tensors_come_go_and_change_their_kind(weights: Arrays) -> None:
    old = {**weights, "gone": np.ones(3, np.float32), "typed": np.arange(8, dtype=np.int32)}
    new = {
        "first": np.full((2, 2), 0.5, np.float32),
        "b": weights["b"],
        "typed": np.arange(8, dtype=np.int64) * 2,
        "a": weights["a"][:32] + np.float32(1),
    }
    base = encoded(old)
    update = encoded(new, base=[base])
    decoded = nnr_codec.decode(update, base=[base])
    assert list(decoded) == list(new)
    assert_same({"typed": decoded["typed"]}, {"typed": new["typed"]})
    assert np.abs(decoded["a"] - new["a"]).max() < 2 * STEP


def test_ties_and_empty_tensors_change() -> None:
    rng = np.random.default_rng(0)
    first = Parameter.from_array("first", rng.normal(0, 0.1, (8, 8)).astype(np.float32))
    other = Parameter.from_array("other", rng.normal(0, 0.1, (8, 8)).astype(np.float32))
    empty = Parameter.from_array("empty", np.zeros((0, 2), np.float32))

    def tie(name: str, parameter: Parameter) -> Parameter:
        return Parameter(name, parameter.shape, parameter.dtype, parameter.load, parameter.name)

    models = [
        Model([first, tie("t", first), other, empty]),
        Model([first, other, tie("t", other), empty]),  # tied to another
        Model([first, Parameter.from_array("t", 2 * first.read()), other]),  # to none
        Model([other, tie("t", other), first, tie("u", first), empty]),
    ]
    for one in models:
        base = encoded(one)
        for model in models:
            update = encoded(model, base=[base])
            with nnr_codec.open(update, base=[base]) as stream:
                assert list(stream) == model.names()


def test_a_tie_follows_the_tensor_that_is_updated(weights: Arrays) -> None:
    def tied(values: Any) -> Model:
        first = Parameter.from_array("first", values)
        return Model([first, Parameter("t", first.shape, first.dtype, first.load, "first")])

    base = encoded(tied(weights["a"]))
    update = encoded(tied(weights["a"] + np.float32(0.1)), base=[base])
    decoded = nnr_codec.decode(update, base=[base])
    assert decoded["t"] is decoded["first"]


def test_open_streams_decode_what_is_read(weights: Arrays, tmp_path: Path) -> None:
    base, update = tmp_path / "base.nnr", tmp_path / "update.nnr"
    base.write_bytes(encoded(weights))
    update.write_bytes(encoded(moved(weights), base=[base]))
    decoded = nnr_codec.decode(update, base=[base])
    with nnr_codec.open(update, base=[base]) as stream:
        assert_same(dict(stream), decoded)
        stream["a"][:] = 0  # the caller's own
        assert_same({"a": stream["a"]}, {"a": decoded["a"]})
        assert stream.info().base is not None
    assert_same(nnr_codec.decode(update, base=[base], only="b"), {"b": decoded["b"]})


def test_a_tensor_that_was_read_can_be_changed(weights: Arrays) -> None:
    base = encoded(weights)
    update = encoded({**weights, "b": weights["b"] + np.float32(1)}, base=[base])
    with nnr_codec.open(update, base=[base]) as stream:
        stream["a"][:] = 7  # it is the base's
        assert stream["a"].max() < 1


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_workers_change_no_byte(kind: Any, weights: Arrays) -> None:
    base, new = encoded({**weights, **every_type()}), {**moved(weights), **moved(every_type())}
    alone = encoded(new, base=[base])
    with kind(2) as executor:
        assert encoded(new, base=[base], executor=executor) == alone
        decoded = nnr_codec.decode(alone, base=[base], executor=executor)
    assert_same(decoded, nnr_codec.decode(alone, base=[base]))


@pytest.mark.parametrize(
    "target", [{"target_size": 2000}, {"max_nmse": 0.002}, {"target_bits": 3.0}, {"max_drop": 0.02}]
)
def test_targets_hold_for_updates(target: dict[str, Any], weights: Arrays) -> None:
    new = moved(weights, 0.05)
    base = encoded(weights)

    def score(tensors: Arrays) -> float:
        return -float(np.abs(tensors["a"] - new["a"]).max())

    evaluate = score if "max_drop" in target else None
    options = EncodeOptions(**target)
    made = nnr_codec.encode(new, options=options, base=[base], evaluate=evaluate, verify=True)
    assert made.report.search is not None
    if "target_size" in target:
        assert len(made.data or b"") <= 2000
    elif "max_nmse" in target:
        assert made.report.nmse <= 0.002
    elif "max_drop" in target:
        assert score(nnr_codec.decode(made.data, base=[base])) >= -0.02


def test_parents_of_an_update_are_the_base(weights: Arrays) -> None:
    new = moved(weights, 0.2)
    base = encoded(weights, UNGROUPED)
    sizes = {}
    for contexts in (True, False):
        options = EncodeOptions(temporal_contexts=contexts, history_contexts=contexts)
        sizes[contexts] = len(encoded(new, options, base=[base]))
    assert sizes[True] <= sizes[False]
    with nnr_codec.open(encoded(new, base=[base]), base=[base]) as stream:
        assert stream.info().profile == 1


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"parents": [b""]}, "base"),
        ({"options": EncodeOptions(profile=0)}, "profile"),
        ({"options": EncodeOptions.preset("default", tune=True)}, "tune"),
        ({"calibration": []}, "calibration"),
        ({"base": [], "base_model": {}}, "base_model"),
        ({"base": [], "residual": "r.safetensors"}, "residual"),
    ],
)
def test_what_does_not_go_together(arguments: dict[str, Any], option: str, weights: Arrays) -> None:
    with pytest.raises(InvalidOptions) as caught:
        nnr_codec.encode(weights, **{"base": [encoded(weights)], **arguments})
    assert caught.value.option == option


def test_factors_are_not_chosen_anew(weights: Arrays) -> None:
    from nnr_codec.options import DecompositionOptions

    options = EncodeOptions(decomposition=DecompositionOptions("lr", rank=0.5))
    with pytest.raises(InvalidOptions, match="factors are those of the base"):
        nnr_codec.encode(weights, options=options, base=[encoded(weights)])


def test_decoding_takes_parents_or_a_base(weights: Arrays) -> None:
    base = encoded(weights)
    with pytest.raises(InvalidOptions):
        nnr_codec.decode(base, base=[base], parents=[base])
    with pytest.raises(InvalidOptions):
        nnr_codec.open(base, base=[base], parents=[base])


def test_the_divergence_is_that_of_the_whole_model() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.ReLU(), torch.nn.Linear(24, 5))
    base = nnr_codec.encode(module).data
    with torch.no_grad():
        module[0].weight += 0.05 * torch.randn(24, 12)
    batches = [torch.randn(16, 12) for _ in range(8)]
    options = EncodeOptions(max_kl=0.001)
    made = nnr_codec.encode(module, options=options, calibration=batches, base=[base], verify=True)
    assert made.report.search is not None
    assert made.report.search.met.loss is not None
    assert made.report.search.met.loss <= 0.001
    assert not made.report.calibrated
