"""Calibration and encoding with the moments of a few weights at a time in memory."""

from __future__ import annotations

import copy
import gc
import os
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import nnr_codec  # noqa: E402
from nnr_codec import EncodeOptions  # noqa: E402
from nnr_codec.calibration import calibrate as calibrate_module  # noqa: E402
from nnr_codec.calibration import file as calibration_file  # noqa: E402
from nnr_codec.calibration import repeated_batches  # noqa: E402
from nnr_codec.calibration.calibrate import calibrate  # noqa: E402
from nnr_codec.calibration.file import load_calibration, save_calibration  # noqa: E402
from nnr_codec.calibration.gradients import OutputGradients  # noqa: E402
from nnr_codec.calibration.held_back import HoldBack  # noqa: E402
from nnr_codec.calibration.moments import Calibration  # noqa: E402
from nnr_codec.calibration.repeated_batches import RepeatedBatches  # noqa: E402
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


def test_a_layer_that_is_too_wide_is_known_in_part(tmp_path: Path) -> None:
    module = Tied().eval()
    bounded = OutputGradients(module, max_bytes=2 * 8 * 2000)
    found = calibrate(module, batches(), only=(), gradients=bounded)
    (note,) = found.notes
    assert note.startswith("moments of gradients of 'wide.weight', 'narrow.weight' take too much")
    assert found.result["wide.weight"].rows is None
    columns = found.result["narrow.weight"].columns
    assert columns is not None
    assert columns.shape == (1, 3, 20, 20)
    report = nnr_codec.encode(module, options=EncodeOptions(qp=-24), calibration=found).report
    assert {t.name: t.feedback for t in report.tensors}["narrow.weight"] == "result"
    assert note in report.notes
    path = tmp_path / "known.npz"
    save_calibration(path, found)
    loaded = load_calibration(path)
    for name, expected in found.result.items():
        np.testing.assert_array_equal(loaded.result[name].columns, expected.columns)


def test_passes_are_few() -> None:
    """What of many layers is too much even for these is known in part."""
    layers = [nn.Linear(32, 32) for _ in range(40)]
    module = nn.Sequential(*layers, nn.Linear(32, 3)).eval()
    of_one = 2 * 8 * 2 * 32**2
    gradients = OutputGradients(module, max_bytes=of_one)
    turns = gradients.in_few_turns()
    assert 8 <= len(turns) <= 16
    assert sum(len(turn.reduced) for turn in turns) >= 32
    assert len(gradients.in_turns(of_one)) > 32


def test_what_does_not_run_is_not_noted() -> None:
    module = Tied().eval()
    module.never = nn.Linear(60, 24)
    bounded = OutputGradients(module, max_bytes=2 * 8 * 2000)
    found = calibrate(module, batches(), only=(), gradients=bounded)
    assert "never" not in found.notes[0]
    assert found.unused == ("never.weight",)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy])
def test_copies_have_them_in_memory(copied: Any) -> None:
    low = known(Tied().eval(), low_memory=True)
    expected = {name: moments.columns for name, moments in low.result.items()}
    again = copied(low)
    del low
    gc.collect()
    again = pickle.loads(again) if isinstance(again, bytes) else again
    for name, columns in expected.items():
        np.testing.assert_array_equal(again.result[name].columns, columns)


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


class Once:
    """Batches that come once, though their type does not tell."""

    def __init__(self) -> None:
        self.left = iter(batches())

    def __iter__(self) -> Iterator[Any]:
        return self.left


class Shuffled:
    """Batches in another order each time."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[Any]:
        samples = torch.cat(batches())
        order = torch.randperm(len(samples), generator=self.generator)
        return iter(samples[order].split(30))


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("source", [lambda: iter(batches()), Once, Shuffled])
def test_the_source_is_gone_over_once(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Tied().eval()
    once = calibrate(module, source(), only=(), gradients=OutputGradients(module))
    for most in (repeated_batches.KEPT_BYTES, 4 * 24 * 30):
        kept = partial(repeated_batches.RepeatedBatches, max_bytes=most)
        monkeypatch.setattr(calibrate_module, "RepeatedBatches", kept)
        gradients = OutputGradients(module)
        low = calibrate(module, source(), only=(), gradients=gradients, low_memory=True)
        for name, expected in once.result.items():
            np.testing.assert_array_equal(low.result[name].columns, expected.columns)
            np.testing.assert_array_equal(low.result[name].rows, expected.rows)


@pytest.mark.usefixtures("one_at_a_time")
def test_samples_that_are_held_back_are_not_calibrated_with() -> None:
    seen: set[float] = set()
    held = HoldBack(Shuffled())
    module = Tied().eval()

    def perturb(inputs: Any, _: Any) -> Any:
        seen.update(inputs[:, 0].tolist())
        return inputs

    gradients = OutputGradients(module, perturb=perturb)
    calibrate(module, held, only=(), gradients=gradients, low_memory=True)
    of_held = {value for batch in held.held() for value in batch[:, 0].tolist()}
    assert seen
    assert not seen & of_held


@pytest.mark.usefixtures("one_at_a_time")
def test_a_perturbation_in_place_changes_no_batch() -> None:
    module, samples = Tied().eval(), batches()
    gradients = OutputGradients(module, perturb=lambda inputs, _: inputs.add_(1))
    calibrate(module, samples, only=(), gradients=gradients, low_memory=True)
    assert all(map(torch.equal, samples, batches()))


@pytest.mark.usefixtures("one_at_a_time")
def test_weights_that_are_buffers() -> None:
    module = Tied().eval()
    weight = module.narrow.weight.data
    del module.narrow.weight
    module.narrow.register_buffer("weight", weight)
    low, high = known(module, low_memory=True), known(module, low_memory=False)
    assert low.result.keys() == high.result.keys() >= {"narrow.weight"}
    for name, expected in high.result.items():
        np.testing.assert_array_equal(low.result[name].columns, expected.columns)


class Sometimes(nn.Module):
    """A layer of which runs with some batches alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.rare, self.last = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 6)

    def forward(self, values: Any) -> Any:
        inner = torch.relu(self.first(values))
        inner = torch.relu(self.rare(inner)) if len(values) == 30 else inner
        return self.last(inner)


@pytest.mark.usefixtures("one_at_a_time")
def test_layers_that_run_sometimes() -> None:
    """What is drawn at random for later batches is the same in each pass."""
    module = Sometimes().eval()
    samples = [*torch.cat(batches()).split([20, 30, 20, 20])]
    low, high = (
        calibrate(
            *(module, samples), only=(), gradients=OutputGradients(module), low_memory=low_memory
        )
        for low_memory in (True, False)
    )
    assert low.result.keys() == high.result.keys() >= {"rare.weight"}
    for name, expected in high.result.items():
        np.testing.assert_array_equal(low.result[name].rows, expected.rows)


class TestRepeatedBatches:
    def test_a_part_of_a_tensor_is_kept_without_the_rest(self) -> None:
        whole = torch.randn(1000, 24)
        repeated = RepeatedBatches(({"x": part}, [1]) for part in whole.split(20))
        repeated._left = 0
        first = list(repeated)
        assert repeated._file is not None
        assert repeated._file._end == whole.nbytes
        for _ in range(2):
            again = list(repeated)
            assert len(again) == 50
            for (one, targets), (other, _) in zip(again, first, strict=True):
                assert torch.equal(one["x"], other["x"])
                assert targets == [1]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int64, torch.complex64])
    def test_tensors_and_arrays(self, dtype: Any) -> None:
        tensor = torch.randn(40, 30).mul(3).to(dtype).T
        array = np.arange(2000).reshape(2, 1000).astype(">i4")
        repeated = RepeatedBatches(iter([[tensor, (array, "name", None)]]), max_bytes=0)
        list(repeated)
        ((again, (values, name, nothing)),) = list(repeated)
        assert again is not tensor
        assert torch.equal(again, tensor)
        assert again.dtype == dtype
        np.testing.assert_array_equal(values, array)
        assert (name, nothing) == ("name", None)

    def test_what_has_more_to_it_stays_in_memory(self) -> None:
        class Local(dict[str, Any]):
            pass

        kept = [Local(x=torch.ones(3000)), torch.ones(3000, requires_grad=True), nn.Parameter()]
        repeated = RepeatedBatches(iter(kept), max_bytes=0)
        for _ in range(2):
            assert [id(batch) for batch in repeated] == [id(batch) for batch in kept]


def test_a_full_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(OSError, match="TMPDIR") as error:
        SpillFile()
    assert error.value.filename == str(tmp_path / "missing")


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
