"""Moments by themselves, and in files: no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnr_codec.calibration.file import load_calibration, save_calibration
from nnr_codec.calibration.moments import Calibration, InputMoments, RowLayout, block_sizes
from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.support.block_diagonal import block_diagonal


def test_the_largest_are_reduced_first() -> None:
    layouts = {"small": RowLayout((2, 8)), "large": RowLayout((4, 12, 3, 3))}
    full = 8 * (8**2 + 108**2)
    assert block_sizes(layouts, full) == {"small": 8, "large": 108}
    assert block_sizes(layouts, full - 1) == {"small": 8, "large": 54}
    assert block_sizes(layouts, 8 * (8 + 108)) == {"small": 1, "large": 1}
    with pytest.raises(InvalidOptions, match=r"max_bytes: 927 bytes are too few: .* 928"):
        block_sizes(layouts, 927)


def test_reduced_lists_only_the_reduced() -> None:
    whole = InputMoments(RowLayout((1, 2)), np.ones((1, 1, 2, 2)), 1)
    parts = InputMoments(RowLayout((1, 2)), np.ones((1, 2, 1, 1)), 1)
    assert Calibration({"a": whole, "b": parts}, 1).reduced == ("b",)


def test_blocks_are_on_the_diagonal() -> None:
    blocks = np.arange(1.0, 17).reshape(2, 2, 2, 2)
    matrices = block_diagonal(blocks)
    assert matrices.shape == (2, 4, 4)
    assert matrices[1].tolist() == [[9, 10, 0, 0], [11, 12, 0, 0], [0, 0, 13, 14], [0, 0, 15, 16]]
    moments = InputMoments(RowLayout((2, 4, 1), groups=2), blocks, 1)
    np.testing.assert_array_equal(moments.mean(), matrices.mean(axis=0))
    assert not moments.is_whole


def _calibration() -> Calibration:
    rng = np.random.default_rng(4)
    return Calibration(
        {
            "conv.weight": InputMoments(
                RowLayout((4, 2, 3), groups=2), rng.normal(size=(2, 1, 6, 6)), 17
            ),
            "up.weight": InputMoments(
                RowLayout((2, 3, 4), transposed=True), rng.normal(size=(1, 4, 2, 2)), 5
            ),
        },
        samples=9,
        unused=("idle.weight",),
    )


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_calibration_comes_back_from_its_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moments{suffix}"
    before = _calibration()
    save_calibration(path, before)
    after = load_calibration(path)
    assert (after.samples, after.unused, after.reduced) == (9, ("idle.weight",), ("up.weight",))
    assert after.moments.keys() == before.moments.keys()
    for name, moments in before.moments.items():
        assert after.moments[name].layout == moments.layout
        assert after.moments[name].positions == moments.positions
        assert np.array_equal(after.moments[name].blocks, moments.blocks)
    with pytest.raises(InvalidOptions, match="exists already"):
        save_calibration(path, before)
    save_calibration(path, before, overwrite=True)


NORM = {
    **{"scale": "n.weight", "offset": "n.bias", "mean": "n.mean", "variance": "n.var"},
    **{"epsilon": 1e-5, "bias": None, "scale_sensitivity": 0.5},
}


def _changed(path: Path, blocks: dict[str, Any], **changes: Any) -> None:
    """Write the calibration in `path` anew with other blocks and entries."""
    with open_checkpoint(path) as model:
        arrays = dict(model.arrays())
        entry = json.loads(model.metadata["nnr_calibration"])
    metadata = {"nnr_calibration": json.dumps({**entry, **changes})}
    save_checkpoint(path, {**arrays, **blocks}, overwrite=True, metadata=metadata)


@pytest.mark.parametrize(
    ("blocks", "changes", "reason"),
    [
        ({}, {"version": 1}, "version 1"),
        ({}, {"result": {"conv.weight": [1]}}, "valid calibration file: ValueError"),
        ({}, {"result": {"conv.weight": [1.5, True]}}, "1.5 is not a whole number"),
        ({}, {"result": {"conv.weight": [1, 1]}}, "1 is neither true nor false"),
        ({}, {"sensitivities": {"w": -1}}, "-1 is not a number of 0 or more"),
        ({}, {"sensitivities": {"w": float("nan")}}, "nan is not a number"),
        ({}, {"digests": {"w": 3}}, "3 is not a text"),
        ({}, {"norms": {}}, "is not a list"),
        ({}, {"norms": [{**NORM, "scale": 3}]}, "3 is not a text"),
        ({}, {"norms": [{**NORM, "epsilon": -1}]}, "-1 is not a number of 0 or more"),
        ({}, {"norms": [{"scale": "n"}]}, "offset"),
        ({}, {"norms": [{**NORM, "epsilon": 10**400}]}, "OverflowError"),
        (
            {"conv.weight:rows": np.full((4, 4), np.nan)},
            {"result": {"conv.weight": [1, True]}},
            "moments of gradients are damaged",
        ),
        ({}, {"samples": "many"}, "valid calibration file: ValueError"),
        ({}, {"weights": {"gone.weight": {}}}, "valid calibration file: KeyError 'gone.weight'"),
        ({}, {"weights": {"conv.weight": {"shape": 3}}}, "valid calibration file: TypeError"),
        ({"conv.weight": np.zeros((2, 1, 5, 5))}, {}, "do not fit a weight of shape"),
        ({"conv.weight": np.zeros((2, 1, 6, 6), np.float32)}, {}, "moments float32"),
        ({"conv.weight": np.full((2, 1, 6, 6), np.inf)}, {}, "are not finite"),
        ({"conv.weight": np.zeros(())}, {}, "valid calibration file: IndexError"),
        ({"conv.weight": np.zeros((2, 0, 0, 0))}, {}, "do not fit a weight of shape"),
        ({}, {"samples": float("inf")}, "inf is not a whole number"),
        ({}, {"samples": float("nan")}, "nan is not a whole number"),
        ({}, {"samples": -1}, "-1 is not a whole number"),
        ({}, {"samples": True}, "True is not a whole number"),
        ({}, {"samples": 10**4000}, "is not a whole number"),
        ({}, {"unused": "conv"}, "is not a list of names"),
        ({}, {"unused": [1]}, "is not a list of names"),
    ],
)
def test_damaged_calibrations_are_refused(
    tmp_path: Path, blocks: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "moments.npz"
    save_calibration(path, _calibration())
    _changed(path, blocks, **changes)
    with pytest.raises(InvalidModel, match=reason) as caught:
        load_calibration(path)
    assert "moments.npz" in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [4, -3]},
        {"shape": [0, 3]},
        {"shape": [4.5, 3]},
        {"shape": [float("inf"), 3]},
        {"shape": "43"},
        {"shape": []},
        {"groups": 0},
        {"groups": 0, "transposed": True},
        {"groups": 3},
        {"groups": float("inf")},
        {"transposed": "no"},
        {"positions": float("inf")},
        {"positions": 0},
    ],
)
def test_damaged_layers_of_calibrations_are_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    path = tmp_path / "moments.npz"
    layer = {"shape": [4, 3], "groups": 1, "transposed": False, "positions": 5}
    for changes in ({}, entry):
        _write(path, {**layer, **changes})
        if not changes:
            assert load_calibration(path).moments["w"].layout == RowLayout((4, 3))
            continue
        with pytest.raises(InvalidModel) as caught:
            load_calibration(path)
        assert "moments.npz" in str(caught.value)
        assert len(str(caught.value)) < 300


def _write(path: Path, layer: dict[str, Any]) -> None:
    """Write a calibration of one weight, with a matrix for each group."""
    groups = layer["groups"] if layer["groups"] in (1, 3) else 1
    text = {
        **{"version": 5, "samples": 9, "unused": [], "weights": {"w": layer}},
        **{"result": {}, "sensitivities": {}, "outputs": "", "digests": {}, "norms": []},
    }
    blocks = np.tile(np.eye(3), (groups, 1, 1, 1))
    metadata = {"nnr_calibration": json.dumps(text)}
    save_checkpoint(path, {"w": blocks}, overwrite=True, metadata=metadata)


def test_other_files_are_no_calibration(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    save_checkpoint(path, {"a": np.ones(2)})
    with pytest.raises(InvalidModel, match="is not a calibration file"):
        load_calibration(path)
