"""The digits network in C, on products and on factors, beside numpy's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from device_support import host_compilers

import nnr_codec
from conformance import on_factors
from conformance.models import digits
from nnr_codec.options import DecompositionOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if host_compilers() is None:
        pytest.skip("no C and C++ compiler")
    folder = tmp_path_factory.mktemp("digits")
    on_factors.build(folder)
    on_factors.write_images(folder / "images")
    return folder


@pytest.mark.parametrize("form", ["none", "lr", "cp", "tucker2", "ht2"])
def test_all_forms(folder: Path, form: str) -> None:
    chosen = DecompositionOptions(form, rank=0.5, carriage="factors")
    options = nnr_codec.EncodeOptions(decomposition=chosen)
    stream = folder / f"{form}.nnr"
    stream.write_bytes(nnr_codec.encode(on_factors.NETWORK, options=options).data or b"")
    images, labels = digits.load_test_set()
    outputs = digits.logits(nnr_codec.decode(stream), images)
    right = float(np.take_along_axis(outputs, labels[:, np.newaxis].astype(int), 1).sum())
    runs = [
        on_factors.measure(folder / "digits", stream, folder / "images", layers)
        for layers in on_factors.LAYERS
    ]
    for run in runs:
        assert run.label_sum == pytest.approx(right, rel=1e-5)
        assert run.top1 == pytest.approx(100 * np.mean(outputs.argmax(1) == labels))
    dense, factors = runs
    if form == "none":
        assert factors[:4] == dense[:4]
    else:
        assert factors.multiplications < 0.75 * dense.multiplications
        assert factors.weight_bytes < 0.6 * dense.weight_bytes


def test_quality_layers(folder: Path) -> None:
    options = nnr_codec.EncodeOptions(qp=-30, quality_layers=3)
    stream = folder / "layers.nnr"
    stream.write_bytes(nnr_codec.encode(on_factors.NETWORK, options=options).data or b"")
    run = on_factors.measure(folder / "digits", stream, folder / "images", "dense")
    assert run.top1 == pytest.approx(digits.accuracy(nnr_codec.decode(stream)))


def test_what_is_no_digits_network(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.nnr").write_bytes(nnr_codec.encode({"w": np.ones((3, 4))}).data or b"")
    (tmp_path / "damaged.nnr").write_bytes((tmp_path / "other.nnr").read_bytes()[:-1])
    for name in ("other.nnr", "damaged.nnr"):
        with pytest.raises(subprocess.CalledProcessError):
            on_factors.measure(folder / "digits", tmp_path / name, folder / "images", "dense")
