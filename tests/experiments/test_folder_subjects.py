"""ImageNet and CIFAR-10 as torchvision lays them out, made here with a few images."""

from __future__ import annotations

import pickle
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from subject_support import DATA, SUBJECTS, needs_data, tensors_of, torch

from nnr_codec.checkpoints import save_checkpoint
from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.datasets.cifar10 import read_batch
from nnr_codec.experiments.evaluation import evaluate
from nnr_codec.experiments.subject_source import find_subject
from nnr_codec.user.code import load_function

RESNET8 = f"{SUBJECTS}/cifar_resnets.py:resnet8_cifar10_folder"
image_module = pytest.importorskip("PIL.Image")


class Brightness(torch.nn.Module):
    """Stands for a network of torchvision: its logits are the images' mean, in one class."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1:] == (3, 224, 224)
        return self.fc(images.mean((2, 3)))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    package, models = ModuleType("torchvision"), ModuleType("torchvision.models")

    def get_model(name: str, weights: object) -> torch.nn.Module:
        assert (name, weights) == ("vgg16", None)
        return Brightness()

    models.get_model = get_model
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


def _jpeg(path: Path, grey: int, size: tuple[int, int] = (300, 260)) -> None:
    image_module.new("RGB", size, (grey, grey, grey)).save(path)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """A folder with a checkpoint, and in val images of the classes 2 and 7."""
    for split in ("val", "train"):
        for label in range(1000):
            (tmp_path / split / f"n{label:08}").mkdir(parents=True)
    _jpeg(tmp_path / "val" / "n00000002" / "b.JPEG", 40)
    _jpeg(tmp_path / "val" / "n00000002" / "a.JPEG", 200, (224, 500))
    _jpeg(tmp_path / "val" / "n00000007" / "c.JPEG", 120)
    (tmp_path / "val" / "n00000007" / "notes.txt").write_text("no image")
    _jpeg(tmp_path / "train" / "n00000005" / "d.JPEG", 90)
    _jpeg(tmp_path / "train" / "n00000005" / "e.JPEG", 91)
    (tmp_path / "models").mkdir()
    save_checkpoint(tmp_path / "models" / "vgg16-0123abcd.npz", _weights())
    return tmp_path


def _weights() -> dict[str, np.ndarray]:
    weight = np.zeros((1000, 3), np.float32)
    weight[2] = 1  # of bright images
    bias = np.zeros(1000, np.float32)
    bias[7] = 0.5
    return {"fc.weight": weight, "fc.bias": bias}


def test_imagenet(torchvision: None, imagenet: Path) -> None:
    subject = find_subject("vgg16", imagenet)
    assert subject.checkpoint.name == "vgg16-0123abcd.npz"
    found = evaluate(subject, _weights())
    # a, b (both of class 2) and c (7), in this order; 200 is bright, 40 and 120 are not.
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = [((grey / 255 - mean) / deviation).sum() for grey in (200, 40, 120)]
    assert found.outputs[:, 2] == pytest.approx(expected, abs=1e-3)
    assert found.scores["top1"].tolist() == [True, False, True]
    ((_, labels),) = subject.calibration()
    assert labels.tolist() == [5]


def test_imagenet_is_scaled_and_cropped(torchvision: None, imagenet: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 512)[:, np.newaxis, np.newaxis], (512, 1024, 3))
    path = imagenet / "val" / "n00000000" / "ramp.png"
    image_module.fromarray(ramp.astype(np.uint8)).save(path)
    inputs, _ = next(iter(find_subject("vgg16", imagenet, limit=1).batches()))
    red = (inputs[0, 0].numpy() * 0.229 + 0.485) * 255
    # Halved to 256 by 512; of the 256 rows 16 are cut off on either side.
    assert red[:, 0] == pytest.approx(
        np.linspace(0, 255, 512).reshape(256, 2).mean(1)[16:240], abs=1.5
    )


def test_imagenet_without_train_has_nothing_to_calibrate(torchvision: None, imagenet: Path) -> None:
    (imagenet / "train").rename(imagenet / "other")
    assert find_subject("vgg16", imagenet).calibration is None


def test_imagenet_says_what_is_missing(
    torchvision: None, imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidOptions, match="data: vgg16 needs a folder with models, val"):
        find_subject("vgg16")
    with pytest.raises(InvalidOptions, match=r"resnet50 takes one checkpoint .*no resnet50\.\*"):
        find_subject("resnet50", imagenet)
    (imagenet / "models" / "vgg16.pth").write_bytes(b"")
    with pytest.raises(InvalidOptions, match=r"there is vgg16-0123abcd\.npz, vgg16\.pth"):
        find_subject("vgg16", imagenet)
    (imagenet / "models" / "vgg16.pth").unlink()
    (imagenet / "val" / "n00000500").rmdir()
    with pytest.raises(InvalidOptions, match="has 999 folders"):
        find_subject("vgg16", imagenet)
    (imagenet / "val").rename(imagenet / "validation")
    with pytest.raises(InvalidOptions, match=r"vgg16: .* lacks val"):
        find_subject("vgg16", imagenet)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(InvalidOptions, match="vgg16: torchvision is not installed"):
        find_subject("vgg16", imagenet)


def _batch(seed: int) -> tuple[np.ndarray, list[int]]:
    """Return pixels as CIFAR-10's files have them, (images, 3072), and labels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 3072), dtype=np.uint8)
    return pixels, [3, 1, 9, 0, 5, 5, 2, 8, 7, 6, 4, 3]


def _by_python_2(pixels: np.ndarray, labels: list[int]) -> bytes:
    """Return the opcodes that Python 2 wrote, memo included, with the array left out.

    What stands around the pixels there, a call that makes an array, does not matter.
    """

    def short(text: str) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode() + b"q\x05"

    parts = [b"\x80\x02}q\x01(", short("batch_label"), short("testing batch 1 of 1")]
    parts += [short("labels"), b"]q\x06("]
    parts += [b"K" + bytes([label]) for label in labels]
    parts += [b"e", short("data"), b"T" + struct.pack("<i", pixels.nbytes), pixels.tobytes()]
    parts += [b"q\x07", short("filenames"), b"]q\x08(", short("cat_1.png"), b"eu."]
    return b"".join(parts)


@pytest.mark.parametrize("kind", ["python 2", 2, 3, 4, 5])
def test_batches_of_cifar10(tmp_path: Path, kind: int | str) -> None:
    pixels, labels = _batch(0)
    if kind == "python 2":
        content = _by_python_2(pixels, labels)
        read = pickle.loads(content, encoding="latin-1")  # what torchvision sees
        assert read["labels"] == labels
        assert read["data"].encode("latin-1") == pixels.tobytes()
    else:
        content = pickle.dumps({b"data": pixels, b"labels": labels, b"n": [300, 1]}, protocol=kind)
    (tmp_path / "batch").write_bytes(content)
    images, found = read_batch(tmp_path / "batch")
    assert found.tolist() == labels
    assert np.array_equal(images, pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def test_reading_a_batch_runs_nothing(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    pixels, labels = _batch(0)
    content = pickle.dumps({"data": pixels, "labels": labels, "more": Bad()}, protocol=2)
    (tmp_path / "batch").write_bytes(content)
    assert len(read_batch(tmp_path / "batch")[1]) == len(labels)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"data": b"", "labels": []}),
        pickle.dumps({"data": bytes(2 * 3072), "labels": [1]}),
        pickle.dumps({"data": bytes(3072), "labels": [10]}),
        pickle.dumps({"data": bytes(3072), "labels": [1]})[:-100],
    ],
)
def test_what_is_no_batch_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(content)
    with pytest.raises(InvalidOptions, match=r"test_batch.*(cannot be read|is not a batch)"):
        read_batch(path)


def test_cifar10_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (tmp_path / "models").mkdir()
    network = load_function(f"{SUBJECTS}/cifar_resnets.py:TinyResNet", "subject")()
    tensors = {
        name: value.numpy()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_checkpoint(tmp_path / "models" / "resnet8_mlperftiny_cifar10.safetensors", tensors)
    with pytest.raises(InvalidOptions, match="lacks cifar-10-batches-py/test_batch, cifar-10-"):
        find_subject(RESNET8, tmp_path)
    for name, seed in (("test_batch", 1), ("data_batch_1", 2)):
        pixels, labels = _batch(seed)
        (folder / name).write_bytes(_by_python_2(pixels, labels))
    subject = find_subject(RESNET8, tmp_path, stride=3)
    pixels, labels = _batch(1)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(pixels[::3].reshape(-1, 3, 32, 32)).float())
    found = evaluate(subject, tensors)
    np.testing.assert_allclose(found.outputs, expected.numpy(), rtol=1e-4, atol=1e-4)
    right = expected.argmax(1).numpy() == np.array(labels)[::3]
    assert found.scores["top1"].tolist() == right.tolist()
    ((inputs, calibrating),) = subject.calibration()
    assert calibrating.tolist() == labels[::5]
    assert inputs[1].flatten().tolist() == _batch(2)[0][5].tolist()


@needs_data
def test_cifar10_folder_with_real_weights(tmp_path: Path) -> None:
    """Lossless training images: nearly all of them are answered rightly."""
    with np.load(DATA / "datasets" / "cifar10_calib.npz") as archive:
        pixels, labels = archive["images"][::20], archive["labels"][::20].tolist()
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("test_batch", "data_batch_1"):
        flat = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        (folder / name).write_bytes(_by_python_2(np.ascontiguousarray(flat), labels))
    (tmp_path / "models").symlink_to(DATA / "models")
    subject = find_subject(f"{SUBJECTS}/cifar_resnets.py:resnet20_cifar10_folder", tmp_path)
    assert evaluate(subject, tensors_of(subject)).scores["top1"].mean() >= 0.98
