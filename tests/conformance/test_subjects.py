"""Our subjects, where their models and data are at hand: NNR_SHARED names the folder."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from subject_support import DATA, SUBJECTS, needs_data, tensors_of, torch

from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.evaluation import evaluate
from nnr_codec.experiments.measures.complexity import subject_complexity
from nnr_codec.experiments.subject import Subject
from nnr_codec.experiments.subject_source import find_subject
from nnr_codec.user.code import load_function

RESNETS = ["resnet8_cifar10", "resnet20_cifar10", "resnet56_cifar10"]
FILES = {
    **dict.fromkeys(RESNETS, "cifar_resnets.py"),
    "squeezenet_imagenet": "squeezenet.py",
    "mobilenet_vww": "mobilenet.py",
    "vdsr_set5": "vdsr.py",
    "minilm_pairs": "minilm.py",
}
needs_pillow = pytest.mark.skipif(
    importlib.util.find_spec("PIL") is None, reason="Pillow is not installed"
)


@pytest.fixture(scope="module")
def evaluator() -> Any:
    """Return the evaluator that came with the data."""
    pytest.importorskip("PIL")
    spec = importlib.util.spec_from_file_location("eval_reference", DATA / "eval_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _subject(name: str, data: Path | None = DATA, **sampling: int) -> Subject:
    return find_subject(f"{FILES[name]}:{name}", data, folder=SUBJECTS, **sampling)


def _evaluated(subject: Subject) -> Any:
    return evaluate(subject, tensors_of(subject))


@needs_data
@pytest.mark.parametrize("name", RESNETS)
def test_cifar_resnets_as_the_other_evaluator_says(evaluator: Any, name: str) -> None:
    subject = _subject(name, stride=50)
    found = _evaluated(subject)
    state = evaluator.load_state(str(subject.checkpoint))
    run = evaluator.eval_resnet8 if name == "resnet8_cifar10" else evaluator.eval_cifar_resnet
    expected = run(state, None, str(DATA / "datasets"), 200)
    assert len(found.scores["top1"]) == 200
    assert 100 * found.scores["top1"].mean() == pytest.approx(expected["top1"])


@needs_data
@needs_pillow
def test_squeezenet_as_the_other_evaluator_says(evaluator: Any) -> None:
    subject = _subject("squeezenet_imagenet")
    subject = dataclasses.replace(
        subject, batches=dataclasses.replace(subject.batches, indices=range(0, 1000, 50))
    )
    found = _evaluated(subject)
    state = evaluator.load_state(str(subject.checkpoint))
    expected = evaluator.eval_squeezenet_caffe(state, None, str(DATA / "datasets"), 20)
    for top in ("top1", "top5"):
        assert 100 * found.scores[top].mean() == pytest.approx(expected[top])


@needs_data
@needs_pillow
def test_mobilenet_as_the_other_evaluator_says(evaluator: Any) -> None:
    subject = _subject("mobilenet_vww")
    subject = dataclasses.replace(
        subject, batches=dataclasses.replace(subject.batches, indices=range(0, 1000, 10))
    )
    found = _evaluated(subject)
    state = evaluator.load_state(str(subject.checkpoint))
    expected = evaluator.eval_vww(state, None, str(DATA / "datasets"), 100)
    assert 100 * found.outputs.argmax(axis=1).mean() == pytest.approx(expected["share_person"])
    assert found.scores["agreement"].all()
    coarse = {
        key: np.round(value * 16) / 16 if value.ndim > 1 else value
        for key, value in tensors_of(subject).items()
    }
    other = evaluate(subject, coarse, found.outputs)
    against = evaluator.eval_vww(
        {key: torch.from_numpy(value.astype(np.float32)) for key, value in coarse.items()},
        state,
        str(DATA / "datasets"),
        100,
    )
    assert 100 * other.scores["agreement"].mean() == pytest.approx(against["agree_top1"])
    assert other.divergence.mean() == pytest.approx(against["kl_ref_to_this"], rel=1e-3)
    assert other.divergence.mean() > 0


@needs_data
def test_vdsr_as_the_other_evaluator_says(evaluator: Any) -> None:
    subject = _subject("vdsr_set5", stride=5, limit=2)  # another scale, another image
    found = _evaluated(subject)
    state = evaluator.load_state(str(subject.checkpoint))
    with np.load(DATA / "datasets" / "set5y_4of5.npz") as images, torch.inference_mode():
        samples = ((2, "bird"), (3, "butterfly"))
        for (scale, name), psnr in zip(samples, found.scores["psnr_db"], strict=True):
            low, truth = images[f"{name}_{scale}_in"], images[f"{name}_gt"]
            inputs = torch.from_numpy(low / np.float32(255))[None, None]
            high = (evaluator.vdsr(state, inputs)[0, 0].numpy() * 255).clip(0, 255)
            inside = np.s_[scale : low.shape[0] - scale, scale : low.shape[1] - scale]
            expected = evaluator.psnr(truth[inside], high[inside], 255.0)
            assert psnr == pytest.approx(expected, abs=1e-3), name
            assert psnr > evaluator.psnr(truth[inside], low[inside], 255.0) + 1  # of bicubic
    assert not found.divergence.any()
    assert found.agreement.all()


@needs_data
def test_minilm_finds_the_partners_that_the_data_folder_states() -> None:
    subject = _subject("minilm_pairs")
    samples = load_function("minilm.py:samples", "subject", SUBJECTS)
    whole = samples(DATA / "datasets" / "minilm_pairs.npz")
    found = _evaluated(dataclasses.replace(subject, batches=whole))
    assert 100 * found.scores["top1"].mean() == pytest.approx(43.75)
    assert found.scores["mrr"].mean() == pytest.approx(0.5537, abs=5e-5)


@needs_data
@needs_pillow
@pytest.mark.parametrize("name", FILES)
def test_calibration_fits_the_module_and_is_never_measured(name: str) -> None:
    subject = _subject(name, limit=2)
    module = subject.module().eval()
    seen: set[bytes] = set()
    for batches, first_only in ((subject.batches, False), (subject.calibration, True)):
        for inputs, _ in batches():
            parts = inputs if isinstance(inputs, tuple) else (inputs,)
            with torch.inference_mode():
                outputs = module(*(part[:1] for part in parts))
            assert len(outputs) == 1
            assert not first_only or bool(outputs.isfinite().all())  # or it calibrates nothing
            images = {image.numpy().tobytes() for image in parts[0]}
            assert not seen & images
            seen |= images if not first_only else set()
            if first_only:
                break


@needs_data
def test_costs() -> None:
    expected = {"resnet8_cifar10": 12_501_632, "resnet20_cifar10": 40_551_040}
    for name, macs in expected.items():
        found = subject_complexity(_subject(name))
        assert (found.macs, found.unknown, found.idle) == (macs, (), ())
    assert subject_complexity(_subject("minilm_pairs")).idle == ("pooler.dense",)


@pytest.mark.parametrize("name", FILES)
def test_says_what_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidOptions, match=rf"data: {name} needs a folder with models/\w+\.saf"):
        _subject(name, None)
    with pytest.raises(InvalidOptions, match=f"data: {name}: .* lacks models/.*datasets/"):
        _subject(name, tmp_path)


def test_every_file_is_tested_here_or_beside() -> None:
    others = {"__init__.py", "cifar_references.py", "digits_networks.py", "sample_files.py"}
    assert {path.name for path in SUBJECTS.glob("*.py")} == {*FILES.values()} | others


@pytest.mark.parametrize("name", [*FILES, *(f"{name}_folder" for name in RESNETS)])
def test_a_name_without_its_file_tells_the_file(name: str) -> None:
    with pytest.raises(InvalidOptions, match=f'"(PATH/conformance/subjects/.*:{name})"') as caught:
        find_subject(name, DATA)
    (path,) = re.findall('"PATH/(.*)"', str(caught.value))
    assert callable(load_function(path, "subject", SUBJECTS.parents[1]))
