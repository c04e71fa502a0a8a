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
from nnr_codec.experiments import subject_source
from nnr_codec.experiments.batches import Batches, first_sample
from nnr_codec.experiments.evaluation import evaluate
from nnr_codec.experiments.subject_source import find_subject


def _example() -> str:
    """Return the example of the module's docstring."""
    lines = inspect.getdoc(subject_source).splitlines()
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


RETURNS = """
import torch
PATH = r"{folder}/small.npz"
BATCHES = [(torch.ones(2, 4), torch.zeros(2, dtype=int)), (torch.ones(1, 4), torch.zeros(1))]
from nnr_codec.experiments.subject import Subject
def mine({parameters}): return {returned}
"""


@pytest.mark.parametrize("parameters", ["data", "", "folder", "size=3", "size=3, data=None"])
@pytest.mark.parametrize(
    "returned",
    [
        "torch.nn.Linear(4, 3), PATH, BATCHES",
        "lambda: torch.nn.Linear(4, 3), __import__('pathlib').Path(PATH), lambda: iter(BATCHES)",
        "Subject('mine', lambda: torch.nn.Linear(4, 3), PATH, lambda: BATCHES)",
    ],
)
def test_what_functions_take_and_return(tmp_path: Path, parameters: str, returned: str) -> None:
    save_checkpoint(tmp_path / "small.npz", linear_tensors())
    text = RETURNS.format(folder=tmp_path, parameters=parameters, returned=returned)
    (tmp_path / "mine.py").write_text(text)
    subject = find_subject("mine.py:mine", tmp_path, folder=tmp_path, limit=2)
    assert subject.name == "mine"
    assert subject.module() is not subject.module()
    for _ in range(2):  # the samples can be read again
        assert len(evaluate(subject, tensors_of(subject)).outputs) == 2


@pytest.mark.parametrize(
    "parameters",
    ["data", "folder", "size=3, data=None", "*, data", "data, /", "folder=None", "data='/nowhere'"],
)
def test_functions_get_the_folder_of_data(tmp_path: Path, parameters: str) -> None:
    name = "folder" if parameters.startswith("folder") else "data"
    text = f"def mine({parameters}): return min, {name} / 'small.npz', []"
    (tmp_path / "mine.py").write_text(text)
    found = find_subject(f"{tmp_path / 'mine.py'}:mine", tmp_path / "data")
    assert found.checkpoint == tmp_path / "data" / "small.npz"


def test_a_default_stands_where_no_folder_is_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def mine(data='/somewhere'): return min, f'{data}/small.npz', []")
    assert find_subject(f"{path}:mine").checkpoint == Path("/somewhere/small.npz")


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


@pytest.mark.parametrize("kind", ["list", "subject", "calibration"])
@pytest.mark.parametrize("batch", ["torch.ones(2, 4)", "(torch.ones(2, 4),)", "(1, 2, 3)", "'ab'"])
def test_batches_are_pairs(tmp_path: Path, batch: str, kind: str) -> None:
    returned = {
        "list": "min, 'x.npz', BATCHES",
        "subject": "Subject('mine', min, 'x.npz', lambda: BATCHES)",
        "calibration": "Subject('mine', min, 'x.npz', None, calibration=lambda: BATCHES)",
    }[kind]
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom nnr_codec.experiments.subject import Subject\n"
        f"BATCHES = [{batch}]\ndef mine(): return {returned}\n"
    )
    found = find_subject("mine.py:mine", folder=tmp_path)
    batches = found.calibration if kind == "calibration" else found.batches
    reason = r"mine\.py:mine: a batch is a value of type \w+, not a pair \(inputs, targets\)"
    with pytest.raises(InvalidOptions, match=reason):
        list(batches())


def test_functions_that_need_data_say_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def needs(data): return min, data / 'x', []\ndef fails(): raise KeyError('data')\n"
    )
    with pytest.raises(InvalidOptions, match=r"mine\.py:needs: TypeError.*: give --data"):
        find_subject(f"{path}:needs")
    assert find_subject(f"{path}:needs", tmp_path).checkpoint == tmp_path / "x"
    with pytest.raises(InvalidOptions, match=r"KeyError: 'data' \(line 2 of mine\.py\)$"):
        find_subject(f"{path}:fails")


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("", "absent.py:f", "there is no file"),
        ("", "mine.py:f", "has no function 'f'"),
        ("f = 3", "mine.py:f", "has no function 'f'"),
        ("def f(:", "mine.py:f", "SyntaxError"),
        ("import no_such_module_anywhere", "mine.py:f", "no_such_module_anywhere"),
        ("def f(data): return data / 'x'", "mine.py:f", "TypeError"),
        ("def f(data): return 3", "mine.py:f", "returns a value of type int; .*or a Subject"),
        (
            "def f(): return 1, 2",
            "mine.py:f",
            r"type tuple of 2; .*\(module, checkpoint, batches\)",
        ),
        (
            "def f(): return 1, 'x.npz', []",
            "mine.py:f",
            "module is a value of type int, not a torch",
        ),
        (
            "def f(): return min, 3, []",
            "mine.py:f",
            "checkpoint is .* int, not the path of a model",
        ),
        ("def f(): return min, 'x.npz', 3", "mine.py:f", "batches is .* int, not a list"),
        ("def f(): return min, 'x', iter([])", "mine.py:f", "batches is .* that can be read again"),
        ("def f(a, b): return a, b", "mine.py:f", "takes a, b; it can take the folder of data"),
        ("", "resnet9000", "'resnet9000' is neither FILE.py:FUNCTION nor one of vgg16, "),
    ],
)
def test_refused_with_its_name(tmp_path: Path, text: str, name: str, reason: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InvalidOptions, match=reason) as caught:
        find_subject(name, folder=tmp_path)
    assert name in str(caught.value)
