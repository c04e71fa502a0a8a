"""Calibration and encoding with the moments of a few weights at a time in memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec import EncodeOptions, InvalidOptions  # noqa: E402
from nnr_codec.calibration import calibrate as calibrate_module  # noqa: E402
from nnr_codec.calibration import file as calibration_file  # noqa: E402
from nnr_codec.calibration.calibrate import calibrate  # noqa: E402
from nnr_codec.calibration.file import load_calibration, save_calibration  # noqa: E402
from nnr_codec.calibration.gradients import OutputGradients  # noqa: E402
from nnr_codec.calibration.held_back import HoldBack  # noqa: E402
from nnr_codec.calibration.moments import Calibration  # noqa: E402
from nnr_codec.calibration.spilled_moments import SpilledMoments  # noqa: E402
from nnr_codec.support.spilled import SpillFile  # noqa: E402


class Tied(nn.Module):
    """Five layers, the first and the fourth with one weight, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.wide = nn.Linear(24, 24), nn.Linear(24, 60)
        self.norm, self.narrow = nn.BatchNorm1d(60), nn.Linear(60, 24)
        self.again, self.last = nn.Linear(24, 24), nn.Linear(24, 6)
        self.again.weight = self.first.weight

    def forward(self, values: Any) -> Any:
        inner = self.narrow(torch.relu(self.norm(self.wide(torch.relu(self.first(values))))))
        return self.last(torch.relu(self.again(inner)))


def batches() -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((30, 24), generator=generator) for _ in range(3)]


def known(module: Any, *, low_memory: bool) -> Calibration:
    gradients = OutputGradients(module)
    return calibrate(module, batches(), only=(), gradients=gradients, low_memory=low_memory)


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_module, "_LOW_BYTES", 1)


@pytest.mark.usefixtures("one_at_a_time")
def test_the_same_is_known() -> None:
    module = Tied().eval()
    low, high = known(module, low_memory=True), known(module, low_memory=False)
    assert isinstance(low.result, SpilledMoments)
    assert list(low.result) == ["first.weight", "wide.weight", "narrow.weight", "last.weight"]
    assert low.sensitivities == high.sensitivities
    assert (low.samples, low.outputs, low.unused) == (90, "classes", ())
    assert low.norms == high.norms
    assert [norm.bias for norm in low.norms] == ["wide.bias"]
    for name, expected in high.result.items():
        found = low.result[name]
        np.testing.assert_array_equal(found.columns, expected.columns)
        np.testing.assert_array_equal(found.rows, expected.rows)
        assert (found.count, found.is_checked) == (expected.count, expected.is_checked)
    assert low.result["first.weight"].count == 2 * low.result["last.weight"].count


@pytest.mark.usefixtures("one_at_a_time")
def test_streams_are_the_same(tmp_path: Path) -> None:
    module, options = Tied().eval(), EncodeOptions(qp=-24, correct=False)
    streams = [
        nnr_codec.encode(module, options=options, calibration=batches(), low_memory=low).data
        for low in (False, True)
    ]
    assert streams[0] == streams[1]
    path = tmp_path / "known.npz"
    save_calibration(path, known(module, low_memory=True))
    for low in (False, True):
        loaded = load_calibration(path, low_memory=low)
        assert isinstance(loaded.result, SpilledMoments) == low
        made = nnr_codec.encode(module, options=options, calibration=loaded, low_memory=low)
        assert made.data == streams[0]


def test_turns() -> None:
    gradients = OutputGradients(Tied())
    item = 2 * 8  # float64, in two halves
    sizes = {"first": 2 * 24**2, "wide": 60**2 + 24**2, "narrow": 60**2 + 24**2, "last": 24**2 + 36}
    assert len(gradients.in_turns(1)) == 4
    assert len(gradients.in_turns(item * sum(sizes.values()))) == 1
    assert len(gradients.in_turns(item * (sizes["first"] + sizes["wide"]))) == 2
    bounded = OutputGradients(Tied(), max_bytes=item * 60**2)  # what of one weight does not fit
    turns = bounded.in_turns(1)
    for turn in turns:
        turn.add(batches()[0])
    wide = turns[1].moments()["wide.weight"]
    assert wide.rows is None
    assert wide.columns is not None


_WIDE = 2 * 8 * (60**2 + 24**2)
"""Bytes of the moments of one of the two large weights of `Tied`, in two halves."""


def test_what_one_pass_may_not_hold_has_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, options = Tied().eval(), EncodeOptions(qp=-24, correct=False)
    whole = known(module, low_memory=False)
    bounded = OutputGradients(module, max_bytes=_WIDE)
    found = calibrate(module, batches(), only=(), gradients=bounded)
    assert isinstance(found.result, SpilledMoments)
    assert found.notes == ()
    for name, expected in whole.result.items():
        np.testing.assert_array_equal(found.result[name].columns, expected.columns)
        np.testing.assert_array_equal(found.result[name].rows, expected.rows)
    streams = [
        nnr_codec.encode(module, options=options, calibration=each).data for each in (whole, found)
    ]
    assert streams[0] == streams[1]
    path = tmp_path / "known.npz"
    save_calibration(path, whole)
    assert isinstance(load_calibration(path).result, dict)
    monkeypatch.setattr(calibration_file, "MAX_BYTES", _WIDE)
    assert isinstance(load_calibration(path).result, SpilledMoments)


def test_what_one_pass_may_not_hold_is_left_out_where_there_is_one_alone() -> None:
    module = Tied().eval()
    bounded = OutputGradients(module, max_bytes=_WIDE)
    found = calibrate(module, iter(batches()), only=(), gradients=bounded)
    assert [note for note in found.notes if "'wide.weight', 'narrow.weight'" in note]
    assert found.result["wide.weight"].rows is None
    columns = found.result["narrow.weight"].columns
    assert columns is not None
    assert columns.shape == (1, 3, 20, 20)
    report = nnr_codec.encode(module, options=EncodeOptions(qp=-24), calibration=found).report
    assert {t.name: t.feedback for t in report.tensors}["narrow.weight"] == "result"
    assert found.notes[0] in report.notes


@pytest.mark.usefixtures("one_at_a_time")
def test_one_weight_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    turns: list[OutputGradients] = []
    add = OutputGradients.add

    def watched(self: OutputGradients, batch: Any) -> None:
        add(self, batch)
        turns.append(self)
        seen.append([name for turn in dict.fromkeys(turns) for name in turn.moments()])

    monkeypatch.setattr(OutputGradients, "add", watched)
    known(Tied().eval(), low_memory=True)
    names = ["first.weight", "wide.weight", "narrow.weight", "last.weight"]
    assert seen == [[name] for name in names for _ in range(3)]


class Shrinking:
    """Batches of which there are fewer each time."""

    left = 3

    def __iter__(self) -> Iterator[Any]:
        self.left -= 1
        return iter(batches()[: self.left])


@pytest.mark.usefixtures("one_at_a_time")
def test_batches_that_cannot_be_gone_over_again() -> None:
    module = Tied().eval()
    for once in (iter(batches()), (batch for batch in batches())):
        for source in (once, HoldBack(once)):
            with pytest.raises(
                InvalidOptions, match=r"several times, and a .* is used up"
            ) as error:
                nnr_codec.encode(module, calibration=source, low_memory=True)
            assert error.value.option == "low_memory"
    with pytest.raises(InvalidOptions, match="have 30 samples, not 60") as error:
        nnr_codec.encode(module, calibration=Shrinking(), low_memory=True)
    assert error.value.option == "calibration"


def test_files_go_with_what_they_belong_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = SpillFile()
    arrays = [np.arange(6.0).reshape(2, 3), np.zeros((0, 4), np.float32), np.arange(5, dtype=">i2")]
    spilled = [file.put(array) for array in arrays]
    for array, kept in zip(arrays, spilled, strict=True):
        np.testing.assert_array_equal(kept.read(), array)
        assert kept.read().dtype == array.dtype
    assert len(os.listdir(tmp_path)) == 1
    del file
    gc.collect()
    assert os.listdir(tmp_path) == []
    nnr_codec.encode(Tied().eval(), calibration=batches(), low_memory=True)
    gc.collect()
    assert os.listdir(tmp_path) == []
