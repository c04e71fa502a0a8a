"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import DIGITS, Outcome, Run, save, small_model

from nnr_codec.cli import decode, diff, encode, evaluate, info


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: ``run("nnr-encode", path, "-o", output)``."""
    mains: dict[str, Callable[[list[str]], int]] = {
        "nnr-encode": encode.main,
        "nnr-decode": decode.main,
        "nnr-eval": evaluate.main,
        "nnr-info": info.main,
        "nnr-diff": diff.main,
    }

    def call(name: str, *arguments: Any) -> Outcome:
        capsys.readouterr()
        try:
            code = mains[name]([str(argument) for argument in arguments])
        except SystemExit as exit_:  # of argparse
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model file."""
    return save(tmp_path / "model.safetensors", small_model())


@pytest.fixture
def stream(run: Run, model: Path, tmp_path: Path) -> Path:
    """The small model encoded at the defaults, but with a unit for each tensor."""
    path = tmp_path / "model.nnr"
    assert run("nnr-encode", model, "-o", path, "-q", "--no-group").code == 0
    return path


@pytest.fixture(scope="session")
def digits_stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network encoded at the defaults."""
    path = tmp_path_factory.mktemp("digits") / "digits.nnr"
    assert encode.main([str(DIGITS), "-o", str(path), "-q"]) == 0
    return path
