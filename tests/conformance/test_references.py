"""Long training that resumes, and the networks that are trained so."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from torch import nn  # noqa: E402

from conformance import references  # noqa: E402
from conformance.trainings import resumable  # noqa: E402
from conformance.trainings.resumable import Schedule, train_resumably  # noqa: E402
from conformance.trainings.training import distilled  # noqa: E402
from nnr_codec.errors import InvalidOptions  # noqa: E402

SCHEDULE = Schedule(steps=18, learning_rate=0.05, batch=8)
NETWORKS = references.subjects.NETWORKS


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )


def images() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(5, (50,), generator=generator)


def run(module: nn.Module, state: Path | None, schedule: Schedule = SCHEDULE, **more: Any) -> bool:
    return train_resumably(
        module, *images(), schedule, state, prepare=lambda pixels: pixels / 255 - 0.5, **more
    )


class Interrupted(Exception):
    pass


def test_an_interrupted_run_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = network()
    assert run(whole, tmp_path / "whole")
    monkeypatch.setattr(resumable, "_SAVE_SECONDS", 0.0)
    steps = 0

    def stop(made: int) -> None:
        nonlocal steps
        steps += 1
        if steps in (5, 9):
            raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            run(network(), tmp_path / "pieces", after_step=stop)
    pieces = network()
    assert run(pieces, tmp_path / "pieces", after_step=stop)
    assert steps == SCHEDULE.steps + 2  # the two that were interrupted are done again
    for name, tensor in whole.state_dict().items():
        assert torch.equal(pieces.state_dict()[name], tensor), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces", "whole"]


def test_time_ends_it_in_good_order(tmp_path: Path) -> None:
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert not run(module, tmp_path / "state", minutes=0)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert run(module, tmp_path / "state")
    assert not all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_a_state_of_another_schedule_is_not_taken_up(tmp_path: Path) -> None:
    run(network(), tmp_path / "state")
    short = Schedule(steps=6, learning_rate=0.05, batch=8)
    fresh, again = network(), network()
    run(fresh, tmp_path / "other", short)
    run(again, tmp_path / "state", short)
    assert all(map(torch.equal, fresh.state_dict().values(), again.state_dict().values()))


def test_a_teacher_runs_once_on_what_a_step_sees() -> None:
    """Also for a longer training; and what is learned is the same."""
    calls = 0
    teacher = network().eval()

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    teacher.register_forward_hook(count)
    plain, taught = network(), dict[int, Any]()
    options = {"teacher": teacher, "loss": distilled}
    run(plain, None, **options)
    assert calls == SCHEDULE.steps
    for steps, expected in ((6, 6), (SCHEDULE.steps, SCHEDULE.steps)):
        module = network()
        run(module, None, replace(SCHEDULE, steps=steps), taught=taught, **options)
        assert calls - SCHEDULE.steps == expected == len(taught)
    assert all(map(torch.equal, module.state_dict().values(), plain.state_dict().values()))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    torch.manual_seed(0)
    module = NETWORKS[name]()
    outputs = module.eval()(torch.randn(2, 3, 32, 32))
    assert outputs.shape == (2, 10)
    count = sum(parameter.numel() for parameter in module.parameters())
    assert 2e5 < count < 2e6


def ten_images(data: Path) -> None:
    """A folder of data with ten images, and untrained networks."""
    from PIL import Image
    from safetensors.torch import save_file

    (data / "models").mkdir(parents=True)
    (data / "datasets").mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 32, 32, 3), np.uint8)
    jpeg = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG")
        jpeg.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, jpeg)])
    labels = rng.integers(0, 10, 10)
    bytes_ = np.frombuffer(b"".join(jpeg), np.uint8)
    train, test = data / "datasets/cifar10_train_jpeg.npz", data / "datasets/cifar10_test.npz"
    np.savez(train, jpeg=bytes_, offsets=offsets, labels=labels)
    np.savez(test, images=pixels, labels=labels)
    for name in ("resnet20", "resnet56"):
        save_file(NETWORKS[name]().state_dict(), data / f"models/{name}_cifar10.safetensors")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """On ten images: it trains on from the checkpoint, writes the reference, and is a subject."""
    data, out = tmp_path / "data", tmp_path / "out"
    ten_images(data)
    monkeypatch.setitem(references.SCHEDULES, "resnet20", (2, 0.01))
    monkeypatch.setattr(references, "BATCH", 5)
    words = ["references", "resnet20", "--data", str(data), "-o", str(out), "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        monkeypatch.setattr(sys, "argv", [*words, "--minutes", "0"])
        assert references.main() == 1
        monkeypatch.setattr(sys, "argv", words)
        assert references.main() == 0
        assert references.main() == 0
    finally:
        torch.set_num_threads(threads)
    assert "resnet20: top-1 " in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["resnet20.safetensors"]
    monkeypatch.setenv(references.subjects.FOLDER, str(out))
    subject = references.subjects.resnet20(data)
    assert subject.checkpoint == out / "resnet20.safetensors"
    monkeypatch.delenv(references.subjects.FOLDER)
    with pytest.raises(InvalidOptions, match=r"conformance\.references"):
        references.subjects.resnet20(data)


@pytest.mark.parametrize("name", references.TRAINED)
def test_what_is_trained_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a network is in its checkpoint, of which ResNet-32 leaves blocks of ResNet-56 out."""
    from safetensors.torch import load_file

    ten_images(tmp_path / "data")
    monkeypatch.setitem(references.SCHEDULES, name, (0, 0.1))
    assert references.make(name, tmp_path / "data", tmp_path, math.inf)
    made = load_file(tmp_path / f"{name}.safetensors")
    given = load_file(tmp_path / "data" / "models" / f"{references.TRAINED[name]}.safetensors")
    assert made.keys() == NETWORKS[name]().state_dict().keys()
    assert all(torch.equal(tensor, given[key]) for key, tensor in made.items())
