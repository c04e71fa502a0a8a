"""What updates did not carry, in a file from one to the next."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from updates_support import Arrays, encoded

import nnr_codec
from nnr_codec import EncodeOptions, InvalidModel
from nnr_codec.bitstream.qp import step_size
from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.errors import InvalidOptions

COARSE = EncodeOptions(qp=-20)
STEP = step_size(-20, 2)


def first_model() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(0, 0.5, (24, 24)).astype(np.float32),
        "i": np.arange(4, dtype=np.int32),
    }


def test_it_holds_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "residual.safetensors"
    old = first_model()
    base = encoded(old, COARSE)
    new = {**old, "w": old["w"] + np.float32(0.01)}
    update = encoded(new, COARSE, base=[base], residual=path)
    decoded = nnr_codec.decode(update, base=[base])
    with open_checkpoint(path) as residual:
        assert residual.names() == ["w"]  # integers come back as they are
        assert np.array_equal(residual["w"].read(), new["w"] - decoded["w"])


def chain(tmp_path: Path, residual: Path | None) -> tuple[list[bytes], np.ndarray]:
    """Twelve models that move by a tenth of a step; the sum of their errors."""
    rng = np.random.default_rng(1)
    model = first_model()
    streams = [encoded(model, COARSE)]
    errors = np.zeros((24, 24))
    for _ in range(12):
        change = (0.1 * STEP + rng.normal(0, 0.02 * STEP, (24, 24))).astype(np.float32)
        model = {**model, "w": model["w"] + change}
        update = encoded(model, COARSE, base=streams, residual=residual)
        errors += nnr_codec.decode(update, base=streams)["w"] - model["w"]
        streams.append(update)
    return streams, errors


def test_errors_of_a_chain_cancel(tmp_path: Path) -> None:
    _, with_residual = chain(tmp_path, tmp_path / "residual.safetensors")
    _, without = chain(tmp_path, None)
    assert np.abs(with_residual).max() < 3 * STEP  # what one residual is
    assert np.abs(without).max() > 6 * STEP
    assert abs(with_residual.mean()) < 0.3 * abs(without.mean())


def test_one_of_another_update_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "residual.safetensors"
    old = first_model()
    base = encoded(old, COARSE)
    encoded(old, COARSE, base=[base], residual=path)
    before = path.read_bytes()
    with pytest.raises(InvalidModel, match="was left by the update"):
        nnr_codec.encode(old, options=COARSE, base=[base], residual=path)
    assert path.read_bytes() == before


def test_other_files_are_no_residuals(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, first_model())
    before = path.read_bytes()
    base = encoded(first_model(), COARSE)
    with pytest.raises(InvalidModel, match="is no residual"):
        nnr_codec.encode(first_model(), options=COARSE, base=[base], residual=path)
    assert path.read_bytes() == before


def test_nothing_is_written_if_it_cannot_be(tmp_path: Path) -> None:
    base = encoded(first_model(), COARSE)
    out = tmp_path / "update.nnr"
    for residual in (tmp_path / "missing" / "r.safetensors", tmp_path / "r.unknown"):
        with pytest.raises((InvalidOptions, OSError)):
            nnr_codec.encode(first_model(), out, COARSE, base=[base], residual=residual)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [False, True])
def test_it_stays_if_the_update_cannot_be_written(tmp_path: Path, left: bool) -> None:
    path = tmp_path / "residual.safetensors"
    streams = [encoded(first_model(), COARSE)]
    if left:
        streams.append(encoded(first_model(), COARSE, base=streams, residual=path))
    before = path.read_bytes() if left else None
    new = {**first_model(), "w": first_model()["w"] + np.float32(0.01)}
    out = tmp_path / "update.nnr"

    def appears(report: object) -> None:
        out.write_bytes(b"of another process")

    with pytest.raises(InvalidOptions, match="exists"):
        nnr_codec.encode(new, out, COARSE, base=streams, residual=path, progress=appears)
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="No space"):
            nnr_codec.encode(new, "/dev/full", COARSE, base=streams, residual=path)
    assert (path.read_bytes() if path.exists() else None) == before
    assert sorted(tmp_path.iterdir()) == [path, out][not left :]
    out.unlink()
    nnr_codec.encode(new, out, COARSE, base=streams, residual=path)
    assert path.read_bytes() != before


def test_no_update_appears_if_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        if b"nnr_residual_of" in os.pread(descriptor, 200, 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    base = encoded(first_model(), COARSE)
    monkeypatch.setattr(os, "fsync", full)
    arguments = {"base": [base], "residual": tmp_path / "residual.safetensors"}
    with pytest.raises(OSError, match="No space"):
        nnr_codec.encode(first_model(), tmp_path / "update.nnr", COARSE, **arguments)
    assert not list(tmp_path.iterdir())


def test_it_is_a_file_of_its_own(tmp_path: Path) -> None:
    base = encoded(first_model(), COARSE)
    path = tmp_path / "residual.safetensors"
    with pytest.raises(InvalidOptions, match="is the output, too"):
        nnr_codec.encode(first_model(), path, COARSE, base=[base], residual=path)
    os.mkfifo(path)
    with pytest.raises(InvalidOptions, match="no file that can be replaced"):
        nnr_codec.encode(first_model(), options=COARSE, base=[base], residual=path)


def test_tensors_that_changed_their_shape_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "residual.safetensors"
    streams = [encoded(first_model(), COARSE)]
    streams.append(encoded(first_model(), COARSE, base=streams, residual=path))
    other = {"w": np.ones((3, 3), np.float32)}
    streams.append(encoded(other, COARSE, base=streams, residual=path))
    encoded({"w": np.full((3, 3), 1.2, np.float32)}, COARSE, base=streams, residual=path)


def test_the_residual_of_what_stays_does_not_grow(tmp_path: Path) -> None:
    """Else it would grow from update to update, and come at once when the value moves."""
    path = tmp_path / "residual.safetensors"
    model = first_model()
    streams = [encoded(model, COARSE)]
    other = {**model, "w": model["w"] + np.float32(0.4 * STEP)}
    largest = []
    for new, old in ((other, model), *[(other, other)] * 8):
        update = encoded(new, COARSE, base=streams, base_model=old, residual=path)
        streams.append(update)
        with open_checkpoint(path) as residual:
            largest.append(float(np.abs(residual["w"].read()).max()))
    assert max(largest) < 3 * STEP
