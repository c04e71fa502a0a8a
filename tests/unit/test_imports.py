"""The architecture, as far as imports and calls tell: read from the source, nothing is executed."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nnr_codec

PACKAGE = Path(nnr_codec.__file__).parent
CONFORMANCE = Path(__file__).parents[2] / "conformance"
FLOORS = [
    ["__main__"],
    ["cli"],
    ["experiments"],
    ["torch", "asynchronous", "hub"],
    ["encoder", "decoder", "stream"],  # the front doors
    ["training"],
    ["decompose"],
    ["encoding", "layers"],
    ["decoding", "calibration"],
    ["quantize"],
    ["bitstream"],
    ["factorization", "checkpoints"],
    ["user", "remote"],
    ["support"],
    ["options", "model", "report"],
    ["errors", "_core"],
]
"""The rooms of the package: each imports rooms of the floors below its own alone."""

FRONT_DOORS = FLOORS[4]
ENCODER_ROOMS = {"encoder", "encoding", "decompose", "calibration", "training"}
MOST_IN_ROOT = 12
MOST_IN_A_FOLDER = 25
OPTIONAL_PACKAGES = [
    "torch",
    "onnx",
    "tensorly",
    "scipy",
    "matplotlib",
    "PIL",
    "torchvision",
    "zstandard",
    "constriction",
    "fsspec",
    "urllib3",
]


def _modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()
_PROGRAMS = ("nnr_codec.cli", "nnr_codec.__main__")
LIBRARY = sorted(name for name in MODULES if not name.startswith(_PROGRAMS))


@functools.cache
def _imported_names(name: str) -> set[str]:
    """Return the dotted names in the import statements of module `name`, those in functions too."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


@functools.cache
def _direct(name: str) -> set[str]:
    """Return the modules of the package that importing `name` executes first.

    That of a module executes the packages around it. The package nnr_codec itself is left out: it
    gathers the names of both sides.
    """
    found = set()
    for imported in _imported_names(name):
        parts = imported.split(".")
        found |= {".".join(parts[:length]) for length in range(2, len(parts) + 1)}
    return found & MODULES.keys()


def _closure(name: str) -> set[str]:
    """Return all modules of the package that importing `name` executes, itself included."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting.extend(_direct(current))
    return seen


def _room(name: str) -> str:
    """Return the folder or module of the package's root that a dotted name begins with."""
    return name.split(".")[1]


def _floor(room: str) -> int:
    (floor,) = (number for number, rooms in enumerate(FLOORS) if room in rooms)
    return floor


def _imported_rooms(name: str) -> set[str]:
    """Return the rooms that a module imports, its own left out; the package's names count as those
    of the front doors that give them."""
    paths = {imported for imported in _imported_names(name) if imported.startswith("nnr_codec.")}
    rooms = {_room(path) for path in paths} - {_room(name)}
    public = rooms & set(nnr_codec.__all__)
    return (rooms - public) | ({"encoder"} if public else set())


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """Return a circle of a graph, or nothing if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node not in done:
            for following in sorted(graph[node]):
                if circle := visit(following, [*path, node]):
                    return circle
            done.add(node)
        return []

    return next((circle for node in sorted(graph) if (circle := visit(node, []))), [])


def _modules_imported(name: str) -> set[str]:
    """Return the modules that the import statements of a module name, its own package left out."""
    packages = {name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)}
    return (_imported_names(name) & MODULES.keys()) - packages - {name}


def test_every_room_has_a_floor() -> None:
    rooms = {_room(name) for name in MODULES if name != "nnr_codec"}
    assert rooms | {"_core"} == {room for floor in FLOORS for room in floor}


def test_imports_are_seen() -> None:
    closure = _closure("nnr_codec.encoder")
    assert "nnr_codec.quantize.codebook" in closure  # through tool_search
    assert "nnr_codec.bitstream.bits" in closure  # through the package bitstream
    assert "nnr_codec.errors" in closure  # of checkpoints, by an absolute name
    assert _imported_rooms("nnr_codec.experiments.methods.nnr") >= {"encoder", "options"}
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"nnr_codec"}))
def test_rooms_import_lower_floors_alone(name: str) -> None:
    """Imports in functions and for types included."""
    own = _floor(_room(name))
    assert [room for room in sorted(_imported_rooms(name)) if _floor(room) <= own] == []


def test_modules_import_in_no_circle() -> None:
    assert _circle({name: _modules_imported(name) for name in MODULES}) == []


@pytest.mark.parametrize(
    "name",
    sorted(
        n
        for n in MODULES
        if n.startswith(("nnr_codec.decod", "nnr_codec.stream", "nnr_codec.async"))
    ),
)
def test_decoder_never_imports_the_encoder(name: str) -> None:
    closure = {_room(found) for found in _closure(name) if found != "nnr_codec"}
    assert closure & ENCODER_ROOMS == set()


def test_folders_are_small() -> None:
    root = [path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(root) <= MOST_IN_ROOT
    folders: dict[Path, int] = {}
    for path in [*MODULES.values(), *CONFORMANCE.rglob("*.py")]:
        folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {folder: n for folder, n in folders.items() if n > MOST_IN_A_FOLDER} == {}


def test_nothing_installed_imports_conformance() -> None:
    users = {name for name in MODULES for used in _imported_names(name) if "conformance" in used}
    assert users == set()


@pytest.mark.parametrize("name", LIBRARY)
def test_library_never_imports_the_command_line(name: str) -> None:
    assert not [found for found in _closure(name) if found.startswith("nnr_codec.cli")]


@pytest.mark.parametrize("name", ["subject_source", "batches", "measures.metrics", "plan"])
def test_plans_are_read_without_torch(name: str, tmp_path: Path) -> None:
    """Where the subjects' side is named but nothing is evaluated."""
    module = f"nnr_codec.experiments.{name}"
    code = f"import sys, {module}; print('torch' in sys.modules)"
    # In another folder: beside the sources Python would take those, which lack the compiled core.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def _offences(source: str) -> list[str]:
    """Return what a library must not do, as far as its text shows."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            found.append("assert")
        elif isinstance(node, ast.Name) and node.id in ("print", "exit", "quit", "SystemExit"):
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.exit", "os._exit"):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            found += [n for n in names if n.split(".")[0] in ("pickle", "marshal", "shelve")]
    return found


@pytest.mark.parametrize(
    ("source", "offence"),
    [
        ("def f(x):\n    assert x", "assert"),
        ("print(1)", "print"),
        ("import sys\nsys.exit(1)", "sys.exit"),
        ("raise SystemExit", "SystemExit"),
        ("from pickle import loads", "pickle"),
    ],
)
def test_offences_are_found(source: str, offence: str) -> None:
    assert _offences(source) == [offence]


@pytest.mark.parametrize("name", LIBRARY)
def test_library_leaves_process_and_terminal_alone(name: str) -> None:
    # What an executor's tasks carry is pickled, as the executor itself does; no file ever is.
    expected = ["pickle"] if name == "nnr_codec.support.shared_function" else []
    assert _offences(MODULES[name].read_text()) == expected


def test_import_loads_no_optional_package(tmp_path: Path) -> None:
    for name in OPTIONAL_PACKAGES:  # so that they can be found, installed or not
        (tmp_path / f"{name}.py").write_text("")
    code = "import sys, nnr_codec; print([n for n in sys.argv[1:] if n in sys.modules])"
    search = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}

    def loaded(statement: str) -> str:
        arguments = [sys.executable, "-c", statement, *OPTIONAL_PACKAGES]
        done = subprocess.run(
            arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert loaded(code) == "[]"
    assert loaded(code.replace("nnr_codec", "nnr_codec.cli.encode")) == "[]"
    assert loaded(code.replace("nnr_codec", "nnr_codec.cli.decode")) == "[]"
    assert loaded(code.replace("nnr_codec", "torch")) == "['torch']"


def test_layers_say_what_they_need(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; import nnr_codec.layers"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("needs torch: pip install nnr-codec[torch]")


def test_private_names_are_not_listed() -> None:
    assert dir(nnr_codec) == sorted(nnr_codec.__all__)
    assert all(getattr(nnr_codec, name) is not None for name in dir(nnr_codec))


def test_the_page_for_contributors_names_every_room() -> None:
    words = set((PACKAGE / "README.md").read_text().replace(".py", "").split())
    assert [room for floor in FLOORS for room in floor if room not in words] == []
