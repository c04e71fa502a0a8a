"""Subjects of users: found in files, thinned out, and refused with a reason."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import numpy as np
import pytest
from subject_support import inputs_and_labels, linear_tensors, logits, subject, tensors_of, torch

from nnr_codec.checkpoints import save_checkpoint
from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments import subject as subject_module
from nnr_codec.experiments.batches import Batches, first_sample
from nnr_codec.experiments.evaluation import evaluate
from nnr_codec.experiments.subject import find_subject


def _example() -> str:
    """Return the example of the module's docstring."""
    lines = inspect.getdoc(subject_module).splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))


def test_the_example_of_ten_lines(tmp_path: Path) -> None:
    example = _example()
    assert len(example.splitlines()) <= 10
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "mine.py").write_text(example)
    inputs, labels = inputs_and_labels()
    save_checkpoint(tmp_path / "test.npz", {"inputs": inputs, "labels": labels})
    save_checkpoint(tmp_path / "small.npz", linear_tensors())

    found = find_subject("mine.py:small", tmp_path, folder=tmp_path / "plan")
    evaluation = evaluate(found, tensors_of(found))
    expected = logits(linear_tensors()).argmax(axis=1) == labels
    assert evaluation.scores["top1"].tolist() == expected.tolist()
    assert found.name == "small"


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("limit", [None, 1, 2, 4])
def test_thinned_out_samples(stride: int, limit: int | None) -> None:
    inputs, labels = inputs_and_labels()
    expected = list(range(7))[::stride][:limit]
    ready = Batches(
        lambda indices: (torch.from_numpy(inputs[np.array(indices)]), labels[np.array(indices)]),
        range(7),
        size=2,
    )
    for whole in (subject(), subject(batches=ready)):
        chosen = list(whole.sampled(stride, limit).batches())
        assert np.concatenate([batch for batch, _ in chosen]).tolist() == inputs[expected].tolist()
        assert np.concatenate([batch for _, batch in chosen]).tolist() == labels[expected].tolist()


def test_thinned_out_batches_are_loaded_no_more_than_needed() -> None:
    asked: list[int] = []

    def load(indices):
        asked.extend(indices)
        return torch.zeros(len(indices), 4), None

    made = subject(batches=Batches(load, range(100), size=3)).sampled(10, 4)
    assert [len(inputs) for inputs, _ in made.batches()] == [3, 1]
    assert asked == [0, 10, 20, 30]


def test_samples_of_several_inputs() -> None:
    def batches():
        yield (torch.arange(5), torch.arange(5) * 2), None

    (found,) = subject(batches=batches).sampled(2).batches()
    assert [part.tolist() for part in found[0]] == [[0, 2, 4], [0, 4, 8]]
    assert found[1] is None
    assert [part.tolist() for part in first_sample(found[0])] == [[0], [0]]


@pytest.mark.parametrize("option", ["stride", "limit"])
def test_thinning_out_needs_positive_numbers(option: str) -> None:
    with pytest.raises(InvalidOptions, match=f"{option}: 0 is less than 1"):
        subject().sampled(**{option: 0})


def test_files_see_their_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("NAME = 'from beside'\n")
    (tmp_path / "mine.py").write_text(
        "from neighbour_of_mine import NAME\n"
        "from nnr_codec.experiments.subject import Subject\n"
        "def made(data): return Subject(NAME, None, data, None)\n"
    )
    assert find_subject(f"{tmp_path / 'mine.py'}:made").name == "from beside"


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("", "absent.py:f", "there is no file"),
        ("", "mine.py:f", "has no function 'f'"),
        ("f = 3", "mine.py:f", "has no function 'f'"),
        ("def f(:", "mine.py:f", "SyntaxError"),
        ("import no_such_module_anywhere", "mine.py:f", "no_such_module_anywhere"),
        ("def f(data): return data / 'x'", "mine.py:f", "TypeError"),
        ("def f(data): return 3", "mine.py:f", "returns a int, not a Subject"),
        ("", "resnet9000", "no 'resnet9000'; there are resnet8_cifar10, .*vgg16.*FILE.py:FUNCTION"),
    ],
)
def test_refused_with_its_name(tmp_path: Path, text: str, name: str, reason: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InvalidOptions, match=reason) as caught:
        find_subject(name, folder=tmp_path)
    assert name in str(caught.value)
