"""Users' files and modules: functions loaded and called, and tensors put into modules."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.model import Model
from nnr_codec.user.code import call_function, in_a_line, load_function
from nnr_codec.user.module import load_state, weight_layers


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("VALUE = 5\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from beside import VALUE\n"
        "def value():\n    return VALUE\n"
        "def fails():\n    raise KeyError('data')\n"
    )
    return path


def test_functions_are_called(user_file: Path) -> None:
    before = list(sys.path)
    assert call_function(f"{user_file}:value", "module") == 5
    assert load_function("mine.py:value", "module", user_file.parent)() == 5
    assert sys.path == before


def test_threads_load_files_side_by_side(tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "helper.py").write_text(f"VALUE = {number}\n")
        text = (
            "import time\ntime.sleep(0.002)\nfrom helper import VALUE\ndef value(): return VALUE\n"
        )
        (folder / "mine.py").write_text(text)

    def value(number: int) -> int:
        sys.path_importer_cache[str(tmp_path / "absent.zip")] = None  # as of an absent archive
        return int(load_function(f"{number}/mine.py:value", "module", tmp_path)())

    before, interval = list(sys.path), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as executor:
            assert list(executor.map(value, [0, 1, 2, 3] * 25)) == [0, 1, 2, 3] * 25
    finally:
        sys.setswitchinterval(interval)
    assert sys.path == before


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("mine.py", "not of the form"),
        ("absent.py:value", "there is no file"),
        ("mine.py:VALUE", "has no function 'VALUE'"),
        ("mine.py:none", "has no function 'none'"),
        ("mine.py:fails", "KeyError: 'data'"),
        ("broken.py:value", "SyntaxError"),
    ],
)
def test_what_is_no_function(
    user_file: Path, place: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user_file.parent / "broken.py").write_text("def value(:\n")
    monkeypatch.chdir(user_file.parent)
    with pytest.raises(InvalidOptions, match=reason) as caught:
        call_function(place, "calibrate")
    assert caught.value.option == "calibrate"
    assert place in str(caught.value)


class TestLoadState:
    def test_all_types(self) -> None:
        torch = pytest.importorskip("torch")
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        rng = np.random.default_rng(0)
        arrays = {
            name: rng.normal(size=tuple(tensor.shape)).astype(np.float16)
            for name, tensor in module.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        load_state(module, Model.from_arrays({**arrays, "beside": np.zeros(3, np.float32)}))
        for name, array in arrays.items():
            assert np.array_equal(module.state_dict()[name].numpy(), array.astype(np.float32))

    def test_tied_tensors_may_have_one_name(self) -> None:
        torch = pytest.importorskip("torch")
        module = torch.nn.ModuleList([torch.nn.Linear(3, 3, bias=False) for _ in range(2)])
        module[1].weight = module[0].weight
        for seed, name in enumerate(("0.weight", "1.weight")):
            values = np.random.default_rng(seed).normal(size=(3, 3)).astype(np.float32)
            load_state(module, Model.from_arrays({name: values}))
            assert np.array_equal(module[0].weight.detach().numpy(), values)

    def test_what_does_not_fit(self) -> None:
        torch = pytest.importorskip("torch")
        module = torch.nn.Linear(3, 2)
        weight = np.zeros((2, 3), np.float32)
        with pytest.raises(
            InvalidModel, match="'bias': is missing: the module has it, the model does not"
        ):
            load_state(module, Model.from_arrays({"weight": weight}))
        with pytest.raises(InvalidModel, match=r"'weight': has the shape \(3, 2\), in the module"):
            load_state(module, Model.from_arrays({"weight": weight.T, "bias": weight[:, 0]}))

    def test_lazy_layers(self) -> None:
        torch = pytest.importorskip("torch")
        module = torch.nn.Sequential(torch.nn.LazyLinear(2))
        model = Model.from_arrays({"0.weight": np.ones((2, 3)), "0.bias": np.ones(2)})
        with pytest.raises(InvalidModel, match="has no shape in the module yet"):
            load_state(module, model)
        with pytest.raises(InvalidModel, match="has no shape in the module yet"):
            weight_layers(module)
        module(torch.zeros(1, 3))
        load_state(module, model)
        assert list(weight_layers(module).values()) == ["0.weight"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import sys\ndef f(): sys.exit('no data')", "SystemExit: no data"),
        ("def f(): return 1 // 0", "ZeroDivisionError"),
        ("class E(BaseException): ...\ndef f(): raise E('own')", "E: own"),
        ("def f(needed): ...", "TypeError"),
    ],
)
def test_code_that_fails(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(text)
    with pytest.raises(InvalidOptions, match=r"user\.py") as caught:
        call_function(f"{tmp_path}/user.py:f", "module")
    assert caught.value.option == "module"
    assert reason in str(caught.value)


def test_errors_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("def deep():\n    return [][1]\ndef f():\n    deep()\n")
    with pytest.raises(InvalidOptions, match=r"IndexError.* \(line 2 of user\.py\)$"):
        call_function(f"{tmp_path}/user.py:f", "module")
    (tmp_path / "code.py").write_text("def f(needed): ...\n")  # called as one of our own files
    with pytest.raises(InvalidOptions, match="TypeError") as caught:
        call_function(f"{tmp_path}/code.py:f", "module")
    assert "(line" not in caught.value.reason
    (tmp_path / "code.py").write_text("def f():\n    raise ValueError\n")
    with pytest.raises(InvalidOptions, match=r"code\.py:f: ValueError \(line 2 of code\.py\)$"):
        call_function(f"{tmp_path}/code.py:f", "module")


def test_lines_of_code_that_a_file_makes_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "from dataclasses import dataclass, field\n"
        "@dataclass\n"
        "class Made:\n"
        "    value: list = field(default_factory=lambda: {}['boom'])\n"
        "def f():\n"
        "    Made()\n"
        "def g():\n"
        "    exec('1 / 0')\n"
    )
    with pytest.raises(InvalidOptions, match=r"KeyError: 'boom' \(line 4 of user\.py\)$"):
        call_function(f"{tmp_path}/user.py:f", "module")
    with pytest.raises(InvalidOptions, match=r"ZeroDivisionError.* \(line 8 of user\.py\)$"):
        call_function(f"{tmp_path}/user.py:g", "module")


def test_errors_that_go_through_another_users_file(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text("def fail(text):\n    raise ValueError(text)\n")
    (tmp_path / "user.py").write_text("from inner import fail\ndef f():\n    fail('no\\nmore')\n")
    with pytest.raises(InvalidOptions, match=r"no\nmore \(line 3 of user\.py\)$") as caught:
        call_function(f"{tmp_path}/user.py:f", "module")
    assert caught.value.__cause__ is not None
    assert in_a_line(caught.value.__cause__) == "ValueError: no (line 3 of user.py)"


def test_errors_that_cannot_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "class Odd(Exception):\n"
        "    def __str__(self):\n"
        "        return None\n"
        "def f():\n"
        "    raise Odd\n"
    )
    with pytest.raises(InvalidOptions, match=r"user\.py:f: Odd \(line 5 of user\.py\)$"):
        call_function(f"{tmp_path}/user.py:f", "module")


def test_wrapped_modules_are_named() -> None:
    torch = pytest.importorskip("torch")
    model = Model.from_arrays({"weight": np.zeros((2, 3), np.float32)})
    layer = torch.nn.Linear(3, 2, bias=False)
    compiled = torch.compile(layer)
    for module, hint in (
        (compiled, "'weight': give what torch.compile wraps, the module's '_orig_mod'"),
        (torch.nn.DataParallel(layer), "give what DataParallel wraps, the module's 'module'"),
        (torch.nn.DataParallel(compiled), "DataParallel wraps, the module's 'module._orig_mod'"),
    ):
        with pytest.raises(InvalidModel, match=hint):
            load_state(module, model)
    wrapped = Model.from_arrays({"module.weight": np.zeros((2, 3), np.float32)})
    with pytest.raises(InvalidModel, match=r"'module\.weight', as of a module that DataParallel"):
        load_state(layer, wrapped)


@pytest.mark.parametrize("text", ["raise KeyboardInterrupt", "def f(): raise KeyboardInterrupt"])
def test_interruptions_go_on(text: str, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(text)
    with pytest.raises(KeyboardInterrupt):
        call_function(f"{tmp_path}/user.py:f", "module")


class TestModules:
    """Files of one name, and what they leave."""

    def write(self, folder: Path, name: str, value: int) -> str:
        folder.mkdir(exist_ok=True)
        (folder / "beside.py").write_text(f"VALUE = {value}\n")
        (folder / "parts").mkdir(exist_ok=True)
        (folder / "parts" / "__init__.py").write_text("")
        (folder / "parts" / "one.py").write_text(f"VALUE = {value}\n")
        (folder / name).write_text(
            "from __future__ import annotations\n"
            "import dataclasses, pickle, sys\n"
            "from beside import VALUE\n"
            "from parts.one import VALUE as OTHER\n"
            "@dataclasses.dataclass\nclass Setting:\n    number: int\n"
            "def value(): return VALUE, OTHER, pickle.loads(pickle.dumps(Setting(VALUE))).number\n"
            "def module(): return sys.modules[__name__]\n"
        )
        return f"{folder / name}:"

    @pytest.mark.parametrize("name", ["model.py", "json.py", "a.b.py", "numpy.py"])
    def test_files_of_one_stem(self, tmp_path: Path, name: str) -> None:
        before = {key: sys.modules.get(key) for key in ("json", "numpy", "model", "a.b")}
        first, second = (self.write(tmp_path / f, name, n) for n, f in enumerate("ab"))
        values = [load_function(f"{place}value", "module") for place in (first, second, first)]
        assert [value() for value in values] == [(0, 0, 0), (1, 1, 1), (0, 0, 0)]
        modules = [call_function(f"{place}module", "module") for place in (first, second)]
        assert len({module.__name__ for module in modules}) == 2
        assert {key: sys.modules.get(key) for key in before} == before

    def test_installed_modules_stay(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a", "first.py", 1)
        place = self.write(tmp_path / "b", "second.py", 2)
        (tmp_path / "b" / "pytest.py").write_text("raise ValueError")
        assert call_function(f"{tmp_path / 'a' / 'first.py'}:value", "module")[0] == 1
        assert call_function(f"{place}value", "module")[0] == 2
        assert sys.modules["pytest"] is pytest

    @pytest.mark.parametrize("end", ["raise ValueError", "raise KeyboardInterrupt", "1 +"])
    def test_nothing_stays_of_a_failure(self, tmp_path: Path, end: str) -> None:
        (tmp_path / "broken.py").write_text(f"import sys\nsys.path.pop(0)\n{end}\n")
        before, path = set(sys.modules), list(sys.path)
        with pytest.raises((InvalidOptions, KeyboardInterrupt)):
            load_function(f"{tmp_path / 'broken.py'}:f", "module")
        assert set(sys.modules) == before
        assert sys.path == path
