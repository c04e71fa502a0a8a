"""Runs of plans: any executor, interruptions, and cells that fail."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments_support import PLAN, save_plan

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("zstandard")
pytest.importorskip("constriction")
pytest.importorskip("torch")

import torch

from nnr_codec import InvalidOptions
from nnr_codec.checkpoints import save_checkpoint
from nnr_codec.experiments import runner
from nnr_codec.experiments.cells import Failure, Measured
from nnr_codec.experiments.report import results as results_module
from nnr_codec.experiments.report.results import Results
from nnr_codec.experiments.report.tables import TIMES, document, rows
from nnr_codec.experiments.runner import run_plan

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
LONG = 120  # seconds, beyond which something hangs

FAILING = """
[[subject]]
source = "subjects.py:linear"

[[subject]]
source = "subjects.py:unfit"

[[subject]]
source = "subjects.py:needy"

[[method]]
name = "absent"
codec = "external"
options = { encode = ["${NNR_NO_SUCH_PYTHON}"], decode = ["x"] }

[[method]]
name = "present"
codec = "int8"
"""


def measured_rows(results: Results) -> list[dict[str, Any]]:
    """Return the rows without what differs from run to run."""
    return [{name: row[name] for name in row if name not in TIMES} for row in rows(results)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of the small plan."""
    found = run_plan(save_plan(tmp_path_factory.mktemp("plan")))
    assert not found.failures
    return measured_rows(found)


def test_rows(expected: list[dict[str, Any]]) -> None:
    whole, *cells = expected
    assert (whole["method"], whole["bytes"], whole["divergence"]) == ("uncompressed", 400, 0.0)
    assert [cell["point"] for cell in cells] == ["qp=-24", "qp=-16", "qp=-8", "bits=8", "bits=4"]
    for cell in expected:
        assert cell["ratio"] == cell["bytes"] / 400
        assert cell["bits_per_weight"] == 8 * cell["bytes"] / 100
        assert (cell["samples"], cell["parameters"], cell["macs"]) == (200, 100, 96)
        assert 0 <= cell["top1"] <= 1
    fine, middle, coarse = cells[:3]
    assert fine["bytes"] > middle["bytes"] > coarse["bytes"]
    assert fine["divergence"] < middle["divergence"] < coarse["divergence"]
    assert fine["agreement"] > coarse["agreement"]


def executor_of(kind: str) -> Any:
    if kind == "threads":
        return ThreadPoolExecutor(3)
    if kind == "processes":
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    return nullcontext()


@pytest.mark.parametrize("kind", ["none", "threads", "processes"])
def test_any_executor(kind: str, tmp_path: Path, expected: list[dict[str, Any]]) -> None:
    executor: Executor | None
    with executor_of(kind) as executor:
        found = run_plan(save_plan(tmp_path), tmp_path / "out", executor=executor)
    assert not found.failures
    assert measured_rows(found) == expected


class Dying(ThreadPoolExecutor):
    """An executor one of whose workers is lost."""

    calls = 0

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == 4:  # the second cell

            def lost() -> None:
                raise RuntimeError("the worker is lost")

            return super().submit(lost)
        return super().submit(function, *arguments, **options)


def test_a_lost_worker_is_a_failed_cell(tmp_path: Path) -> None:
    with Dying(1) as executor:
        found = run_plan(save_plan(tmp_path), executor=executor)
    ((cell, failure),) = found.failures
    assert cell.name == "linear/uniform/qp=-16"
    assert "the worker is lost" in failure.reason


@pytest.mark.parametrize("kind", ["none", "threads"])
def test_torch_keeps_its_threads(kind: str, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with executor_of(kind) as executor:
            run_plan(save_plan(tmp_path), executor=executor)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def measured_anew(plan: Path, out: Path) -> int:
    """Run a plan; return how many cells were not there yet."""
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    run_plan(plan, out)
    after = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    return len(after.items() - before.items())


def test_what_decides_a_cell_makes_it_anew(tmp_path: Path) -> None:
    plan, out = save_plan(tmp_path), tmp_path / "out"
    assert measured_anew(plan, out) == 6
    assert measured_anew(plan, out) == 0
    save_plan(tmp_path, PLAN.replace("[8, 4]", "[8, 3]"))
    assert measured_anew(plan, out) == 1
    save_plan(tmp_path, PLAN.replace("dq = false", "dq = true"))
    assert measured_anew(plan, out) == 3
    save_plan(tmp_path, PLAN.replace('linear"', 'linear"\nstride = 2'))
    assert measured_anew(plan, out) == 6
    save_plan(tmp_path)
    code = tmp_path / "subjects.py"
    code.write_text(code.read_text().replace("default_rng(1)", "default_rng(2)"))
    assert measured_anew(plan, out) == 6
    rng = np.random.default_rng(9)
    weight, bias = rng.normal(0, 1, (4, 24)), rng.normal(0, 1, 4)
    tensors = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
    save_checkpoint(tmp_path / "linear.safetensors", tensors, overwrite=True)
    assert measured_anew(plan, out) == 6


def test_titles_and_seeds_decide_no_cell(tmp_path: Path) -> None:
    plan, out = save_plan(tmp_path), tmp_path / "out"
    measured_anew(plan, out)
    save_plan(tmp_path, PLAN.replace("small", "other").replace("resamples", "seed = 3\nresamples"))
    assert measured_anew(plan, out) == 0


def test_damaged_files_of_a_cell_are_made_anew(
    tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    plan, out = save_plan(tmp_path), tmp_path / "out"
    run_plan(plan, out)
    figures, samples, _ = sorted((out / "cells").glob("*qp=-16*"))
    figures.write_text("{")
    assert measured_anew(plan, out) == 1
    samples.write_bytes(samples.read_bytes()[:50])
    assert measured_anew(plan, out) == 1
    figures.write_text('["key"]')
    assert measured_anew(plan, out) == 1
    whole = json.loads(figures.read_text())
    for changes in ({"figures": None}, {"figures": {}}, {"figures": {"bytes": 1}}, {"digest": 7}):
        figures.write_text(json.dumps({**whole, **changes}))
        assert measured_anew(plan, out) == 1
    figures.write_text("[" * 100_000)
    assert measured_anew(plan, out) == 1
    with samples.open("wb") as file:  # an array instead of an archive of them
        np.save(file, np.zeros(3))
    assert measured_anew(plan, out) == 1
    content = samples.read_bytes()
    flags = content.index(b"PK\1\2") + 8
    samples.write_bytes(content[:flags] + b"\1" + content[flags + 1 :])  # "encrypted"
    assert measured_anew(plan, out) == 1
    with np.load(samples) as archive:
        others = {name: values + 1 for name, values in archive.items()}
    np.savez_compressed(samples, **others)
    assert measured_anew(plan, out) == 1
    assert measured_rows(run_plan(plan, out)) == expected


def test_the_seed_decides_the_intervals(tmp_path: Path) -> None:
    def intervals(seed: int) -> Any:
        plan = save_plan(tmp_path, f"seed = {seed}\n{PLAN}")
        return document(run_plan(plan, tmp_path / "out"))["bytes_at_loss"]

    assert intervals(1) == intervals(1)
    assert intervals(1) != intervals(2)


def command(plan: Path, out: Path) -> list[str]:
    arguments = [str(plan), "-o", str(out), "-q", "--threads", "1"]
    return [sys.executable, "-m", "nnr_codec.cli.evaluate", *arguments]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process as POSIX does")
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    plan, out = save_plan(tmp_path), tmp_path / "out"
    (tmp_path / "pause").write_text("0.5")
    # In another folder: beside the sources Python would take those, which lack the compiled core.
    process = subprocess.Popen(command(plan, out), cwd=tmp_path, stderr=subprocess.PIPE)
    deadline = time.monotonic() + LONG
    while not list((out / "cells").glob("linear-uniform-*.json")):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, _ = process.communicate(timeout=LONG)
    assert process.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    assert 2 <= len(kept) < 6
    assert not (out / "results.csv").exists()

    (tmp_path / "pause").unlink()
    done = subprocess.run(
        command(plan, out), cwd=tmp_path, capture_output=True, timeout=LONG, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    # The same table as that of a run that nobody interrupted.
    whole = tmp_path / "whole"
    subprocess.run(command(plan, whole), cwd=tmp_path, timeout=LONG, check=True)
    assert without_seconds(out / "results.csv") == without_seconds(whole / "results.csv")


def without_seconds(path: Path) -> list[list[str]]:
    header, *lines = (line.split(",") for line in path.read_text().splitlines())
    first = header.index("encode_seconds")
    assert header[first:] == ["encode_seconds", "decode_seconds", "evaluate_seconds"]
    assert len(lines) == 6
    return [header[:first], *(line[:first] for line in lines)]


def test_failed_cells_leave_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NNR_NO_SUCH_PYTHON", raising=False)
    done: list[tuple[str, bool]] = []
    found = run_plan(
        save_plan(tmp_path, FAILING),
        tmp_path / "out",
        progress=lambda name, measured: done.append((name, measured)),
    )
    outcomes = {cell.name: outcome for cell, outcome in found.cells}
    reasons = {name: o.reason for name, o in outcomes.items() if isinstance(o, Failure)}
    assert isinstance(outcomes["linear/present"], Measured)
    assert "NNR_NO_SUCH_PYTHON is not set" in reasons["linear/absent"]
    for name in ("unfit/absent", "unfit/present"):
        assert "'0.weight': is missing" in reasons[name]
    for name in ("needy/absent", "needy/present"):
        assert "needy" in reasons[name]
    assert len(done) == 3 + 6  # the uncompressed networks as well
    assert [name for name, measured in done if measured] == [
        "linear/uncompressed",
        "linear/present",
    ]
    listed = document(found)["failures"]
    assert [failure["cell"] for failure in listed] == [cell.name for cell, _ in found.failures]
    assert (tmp_path / "out" / "report.html").exists()


ENDING = """
import sys
from nnr_codec.experiments.subject import Subject

def at_once(data):
    sys.exit("no data today")

def later(data):
    return Subject("later", lambda: sys.exit(3), data, lambda: sys.exit(4))
"""


@pytest.mark.parametrize("kind", [nullcontext, lambda: ThreadPoolExecutor(2)])
def test_subjects_that_end_the_program(kind: Any, tmp_path: Path) -> None:
    """Only their cells fail."""
    (tmp_path / "ending.py").write_text(ENDING)
    (tmp_path / "unloadable.py").write_text("raise SystemExit(0)")
    more = "".join(
        f'[[subject]]\nname = "{place}"\nsource = "{place}"\n'
        for place in ("ending.py:at_once", "ending.py:later", "unloadable.py:x")
    )
    plan = save_plan(tmp_path, PLAN + more)
    with kind() as executor:
        found = run_plan(plan, executor=executor)
    failed = {cell.subject.name: failure.reason for cell, failure in found.failures}
    assert sorted(failed) == ["ending.py:at_once", "ending.py:later", "unloadable.py:x"]
    assert all("SystemExit" in reason for reason in failed.values())
    assert any(isinstance(outcome, Measured) for _, outcome in found.cells)


def test_failed_cells_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
    text = FAILING.replace(
        'encode = ["${NNR_NO_SUCH_PYTHON}"], decode = ["x"]',
        f'encode = ["${{NNR_NO_SUCH_PYTHON}}", "-c", "{copy}", "{{model}}", "{{stream}}"], '
        f'decode = ["{{python}}", "-c", "{copy}", "{{stream}}", "{{decoded}}"]',
    )
    plan = save_plan(tmp_path, text)
    monkeypatch.delenv("NNR_NO_SUCH_PYTHON", raising=False)
    assert len(run_plan(plan, tmp_path / "out", only="linear/*").failures) == 1
    monkeypatch.setenv("NNR_NO_SUCH_PYTHON", sys.executable)
    found = run_plan(plan, tmp_path / "out", only="linear/*")
    assert not found.failures
    assert measured_rows(found)[1]["divergence"] == 0


def test_folders_that_hold_other_things(tmp_path: Path) -> None:
    plan = save_plan(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(InvalidOptions, match="holds other files than results"):
        run_plan(plan, other)
    assert sorted(path.name for path in other.iterdir()) == ["thesis.tex"]
    assert not run_plan(plan, other, overwrite=True, only="*/bits=4").failures
    with pytest.raises(InvalidOptions, match="output"):
        run_plan(plan, plan)


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    absent = {"constriction"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    with pytest.raises(InvalidOptions, match=r"constriction is missing: pip install.*eval"):
        run_plan(save_plan(tmp_path))


def test_the_packages_are_those_of_the_extra() -> None:
    extra = re.search(r"^eval = \[(.*?)^\]", PROJECT.read_text(), re.DOTALL | re.MULTILINE)
    assert extra is not None
    assert set(runner._PACKAGES) <= set(re.findall(r'"([a-z]+)', extra[1]))


def test_a_run_that_keeps_nothing(tmp_path: Path, expected: list[dict[str, Any]]) -> None:
    folder = tmp_path / "plan"
    folder.mkdir()
    plan = save_plan(folder)
    before = sorted(folder.rglob("*"))
    assert measured_rows(run_plan(plan)) == expected
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    assert sorted(folder.rglob("*")) == before
    assert os.listdir(tmp_path) == ["plan"]


def test_losses_are_paired_with_the_uncompressed_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_plan(save_plan(tmp_path))
    (subject,) = found.subjects
    seen: list[np.ndarray] = []

    def resampled(values: np.ndarray, *rest: Any) -> np.ndarray:
        seen.append(values)
        return np.repeat(values.mean(axis=0, keepdims=True), 10, axis=0)

    monkeypatch.setattr(results_module, "resampled_means", resampled)
    losses = subject.losses
    assert seen[0].shape == (200, 6)
    assert seen[0][:, 0].mean() == pytest.approx(subject.accuracy(subject.reference))
    assert losses.keys() == {"uniform", "integers"}
    for kept in losses.values():  # no spread: no interval
        assert all(one.low == one.bytes == one.high for one in kept if one.bytes)
