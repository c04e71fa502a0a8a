"""Ctrl-C and SIGTERM, whenever they come: a message, an exit code, and nothing temporary."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cli_support import LONG, script

import nnr_codec
from nnr_codec.cli import _common as common
from nnr_codec.cli import encode

SUPPORT = Path(__file__).parents[1] / "experiments"
ENDINGS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}
each_ending = pytest.mark.parametrize("number", ENDINGS, ids=["SIGINT", "SIGTERM"])

# Runs a command in which a function says that it was reached, and hangs.
HANGING = """
import importlib, os, sys, time
command, module, name, *arguments = sys.argv[1:]
owner = importlib.import_module(module)
*parents, name = name.split(".")
for parent in parents:
    owner = getattr(owner, parent)
output = open(os.dup(1), "w")  # during a command others print elsewhere
def hang(*arguments, **options):
    print("reached", file=output, flush=True)
    time.sleep(1000)
setattr(owner, name, hang)
sys.exit(importlib.import_module(f"nnr_codec.cli.{command}").main(arguments))
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of the commands."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def started(*command: Any, **options: Any) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    folder = Path(script("nnr-encode")).parent  # no checkout, which would be imported before us
    return subprocess.Popen(list(map(str, command)), cwd=folder, **pipes, **options)


def hanging(
    module: str, name: str, command: str, *arguments: Any, **options: Any
) -> subprocess.Popen[str]:
    """Start a command, and return when it hangs in a function."""
    process = started(sys.executable, "-c", HANGING, command, module, name, *arguments, **options)
    assert process.stdout is not None
    assert process.stdout.readline() == "reached\n", process.communicate()[1]
    return process


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal, and check what the process says in the end."""
    code, message = ENDINGS[number]
    with process:
        err = None
        give_up = time.monotonic() + LONG
        while err is None and time.monotonic() < give_up:
            # One that comes just before Python waits in the system is noticed with the next one.
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                _, err = process.communicate(timeout=5)
        process.kill()
    assert err is not None
    assert process.returncode == code
    assert err.endswith(f" error: {message}\n")
    assert err.count("\n") == 1


def wait_for(condition: Callable[[], object]) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + LONG
        time.sleep(0.01)


@each_ending
@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("threads", [1, 2])
def test_encoding(
    model: Path, tmp_path: Path, temporary: Path, number: Any, old: bytes | None, threads: int
) -> None:
    out = tmp_path / "out" / "m.nnr"
    out.parent.mkdir()
    if old is not None:
        out.write_bytes(old)
    hang = ["nnr_codec.encoding.model_encoder", "verify_stream"]
    arguments = ["encode", model, "-o", out, "-f", "--verify", "--threads", threads]
    end(hanging(*hang, *arguments), number)
    assert [path.read_bytes() for path in out.parent.iterdir()] == ([] if old is None else [old])
    assert os.listdir(temporary) == []


@each_ending
def test_reading_standard_input(tmp_path: Path, temporary: Path, number: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = [script("nnr-encode"), "-", "-o", out / "m.nnr"]
    process = started(*command, stdin=subprocess.PIPE)
    wait_for(lambda: list(temporary.glob("*/*")))  # the copy is begun, in a folder that is known
    end(process, number)
    assert os.listdir(temporary) == os.listdir(out) == []


@each_ending
def test_encoding_standard_input(model: Path, tmp_path: Path, temporary: Path, number: Any) -> None:
    hang = ["nnr_codec.encoding.model_encoder", "survey_model", "encode", "-", "--dry-run"]
    with open(model, "rb") as file:
        process = hanging(*hang, stdin=file)
    assert len(os.listdir(temporary)) == 1
    end(process, number)
    assert os.listdir(temporary) == []


@each_ending
@pytest.mark.parametrize("source", ["folder", "pipe"])
def test_decoding(stream: Path, tmp_path: Path, temporary: Path, number: Any, source: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    stream.rename(folder / "model.nnr")
    (folder / "config.json").write_text("{}")
    before = sorted(os.listdir(tmp_path))
    hang = ["nnr_codec.decoding.stream_decoder", "decode_data_unit", "decode", "--threads", 1]
    if source == "folder":
        end(hanging(*hang, folder, "-o", f"{tmp_path / 'new'}/"), number)
    else:
        with open(folder / "model.nnr", "rb") as file:
            cat = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
        end(hanging(*hang, "-", "-o", tmp_path / "new.npz", stdin=cat.stdout), number)
        cat.communicate()
    assert sorted(os.listdir(tmp_path)) == before
    assert os.listdir(temporary) == []


@each_ending
def test_evaluating(
    tmp_path: Path, temporary: Path, number: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(SUPPORT))
    from experiments_support import save_plan

    plan, out = save_plan(tmp_path), tmp_path / "results"
    marker = tmp_path / "marker"
    plan.write_text(
        plan.read_text() + '[[method]]\nname = "slow"\ncodec = "external"\npoints = { n = [1] }\n'
        f'options = {{ encode = ["sh", "-c", "echo {{n}} > {marker}; exec sleep 1000"], '
        'decode = ["x"] }\n'
    )
    command = [script("nnr-eval"), plan, "-o", out, "--only", "*/n=*", "--threads", 1]
    process = started(*command)
    wait_for(marker.exists)
    assert len(os.listdir(temporary)) >= 1
    end(process, number)
    assert [name for name in os.listdir(temporary) if name.startswith("nnr")] == []
    assert list(out.rglob("*.tmp")) == []


def test_signals_that_come_again(model: Path, temporary: Path) -> None:
    """What is temporary is removed in peace."""
    slow = """
import tempfile, time
cleanup = tempfile.TemporaryDirectory.cleanup
def slow(self):
    print("cleaning", flush=True)
    time.sleep(1)
    cleanup(self)
tempfile.TemporaryDirectory.cleanup = slow
"""
    hang = ["encode", "nnr_codec.encoding.model_encoder", "survey_model", "-", "--dry-run"]
    with open(model, "rb") as file:
        process = started(sys.executable, "-c", slow + HANGING, *hang, stdin=file)
    assert process.stdout is not None
    assert process.stdout.readline() == "reached\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)
    end(process, signal.SIGTERM)
    assert os.listdir(temporary) == []


def test_a_signal_that_is_ignored_stays_so(model: Path, tmp_path: Path) -> None:
    """As under nohup, or in the background of a shell."""
    code = HANGING.replace("time.sleep(1000)", "time.sleep(1); sys.exit(7)")
    command = [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN)\n" + code]
    hang = ["encode", "nnr_codec.encoding.model_encoder", "survey_model", model, "--dry-run"]
    with started(*command, *hang) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reached\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LONG)
    assert process.returncode == 7


def test_handlers_of_the_program_around_stay(model: Path) -> None:
    before = {number: signal.getsignal(number) for number in ENDINGS}
    assert encode.main([str(model), "--dry-run", "-q"]) == 0
    assert {number: signal.getsignal(number) for number in ENDINGS} == before


class TestVerification:
    def test_mismatch(self, run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from nnr_codec.encoding import model_encoder

        def refuse(*arguments: Any, **options: Any) -> None:
            raise nnr_codec.VerificationMismatch("'w' is another")

        monkeypatch.setattr(model_encoder, "verify_stream", refuse)
        out = model.parent / "m.nnr"
        done = run("nnr-encode", model, "-o", out, "--verify")
        assert (done.code, done.out) == (4, "")
        assert done.err == "nnr-encode: error: 'w' is another\n"
        assert not out.exists()
        assert run("nnr-encode", model, "-o", "-", "--verify").out == ""
        assert run("nnr-encode", model, "-o", out).code == 0

    def test_success(self, run: Any, model: Path) -> None:
        out, plain = model.parent / "m.nnr", model.parent / "plain.nnr"
        assert run("nnr-encode", model, "-o", out, "--verify").code == 0
        assert run("nnr-encode", model, "-o", plain).code == 0
        assert out.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--verify"],
        ["--profile", "1"],
        ["--decompose", "lr", "--rank", "0.5"],
        ["--decompose", "lr", "--compression-ratio", "1.5", "--verify"],
        ["--decompose", "auto"],
        ["--decompose", "joint", "--rank", "0.5"],
    ],
    ids=" ".join,
)
def test_progress_comes_to_its_end(
    run: Any, model: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps smaller than a tensor."""
    totals, amounts = [], []

    class Bar:
        def __init__(self, quiet: bool, total: float, unit: str) -> None:
            totals.append(total)

        def __enter__(self) -> Callable[[float], object]:
            return amounts.append

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(common, "progress_bar", Bar)
    assert run("nnr-encode", model, "--dry-run", *options).code == 0
    assert sum(amounts) == totals[0]
    assert len([amount for amount in amounts if amount]) >= 5
    assert min(amounts) >= 0


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with common.progress_bar(False, 8.0, "w") as advance:
        for amount in (1 / 8, 1 / 8, 3 / 4, 7):
            time.sleep(0.15)  # it is drawn ten times in a second at most
            advance(amount)
    assert "8.00/8.00" in capsys.readouterr().err
