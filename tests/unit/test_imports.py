"""The architecture, as far as imports and calls tell: read from the source, nothing is executed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nnr_codec

PACKAGE = Path(nnr_codec.__file__).parent
ENCODER_SIDE = {
    "nnr_codec.carriage",
    "nnr_codec.choices",
    "nnr_codec.decomposed_unit",
    "nnr_codec.encoder",
    "nnr_codec.exact",
    "nnr_codec.grouping",
    "nnr_codec.model_mapping",
    "nnr_codec.tensor_encoder",
    "nnr_codec.tensor_quantizer",
    "nnr_codec.tool_search",
    "nnr_codec.unit_encoder",
    "nnr_codec.quantize.calibration",
    "nnr_codec.quantize.calibration_file",
    "nnr_codec.quantize.codebook",
    "nnr_codec.quantize.distortion",
    "nnr_codec.quantize.grids",
    "nnr_codec.quantize.integer_rate",
    "nnr_codec.quantize.moments",
    "nnr_codec.quantize.rate",
    "nnr_codec.quantize.unfolding",
}
DECODER_SIDE = [
    "nnr_codec.codeword_decoder",
    "nnr_codec.decoded_model",
    "nnr_codec.decoder",
    "nnr_codec.factorization.files",
    "nnr_codec.layers.loading",
    "nnr_codec.layers.writing",
    "nnr_codec.recomposition",
    "nnr_codec.stream",
    "nnr_codec.stream_info",
    "nnr_codec.unit_decoder",
    "nnr_codec.unit_layout",
    "nnr_codec.series",
    "nnr_codec.factorization.forms",
]
EXPERIMENTS = "nnr_codec.experiments"
USES_EXPERIMENTS = {"nnr_codec.cli.evaluate"}
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
]


def _modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()
ENCODER_SIDE |= {name for name in MODULES if name.startswith("nnr_codec.decompose")}
LIBRARY = sorted(name for name in MODULES if not name.startswith("nnr_codec.cli"))


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


def _bitstream_modules() -> list[str]:
    return sorted(name for name in MODULES if name.startswith("nnr_codec.bitstream"))


def test_the_modules_are_where_this_file_thinks() -> None:
    assert MODULES.keys() >= ENCODER_SIDE | set(DECODER_SIDE)
    assert len(_bitstream_modules()) > 5


def test_closure_sees_what_is_imported() -> None:
    closure = _closure("nnr_codec.encoder")
    assert "nnr_codec.quantize.codebook" in closure  # through tool_search
    assert "nnr_codec.bitstream.bits" in closure  # through the package bitstream
    assert "nnr_codec.errors" in closure  # of checkpoints, by an absolute name


@pytest.mark.parametrize("name", [*DECODER_SIDE, *_bitstream_modules()])
def test_decoder_never_imports_the_encoder(name: str) -> None:
    assert _closure(name) & ENCODER_SIDE == set()


@pytest.mark.parametrize("name", LIBRARY)
def test_library_never_imports_the_command_line(name: str) -> None:
    assert not [found for found in _closure(name) if found.startswith("nnr_codec.cli")]


@pytest.mark.parametrize(
    "name",
    sorted(n for n in MODULES if not n.startswith(EXPERIMENTS) and n not in USES_EXPERIMENTS),
)
def test_the_codec_never_imports_the_experiments(name: str) -> None:
    assert not [found for found in _closure(name) if found.startswith(EXPERIMENTS)]


@pytest.mark.parametrize("name", ["subject", "batches", "metrics"])
def test_plans_are_read_without_torch(name: str, tmp_path: Path) -> None:
    """Where the subjects' side is named but nothing is evaluated."""
    module = f"{EXPERIMENTS}.{name}"
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
    assert _offences(MODULES[name].read_text()) == []


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
    assert loaded(code.replace("nnr_codec", "torch")) == "['torch']"


def test_layers_say_what_they_need(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; import nnr_codec.layers"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("needs torch: pip install nnr-codec[torch]")
