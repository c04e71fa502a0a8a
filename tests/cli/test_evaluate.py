"""nnr-eval: what it prints, and its exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cli_support import Outcome, Run, run_script

from nnr_codec import decode

pytest.importorskip("torch")
for package in ("scipy", "matplotlib", "zstandard", "constriction"):
    pytest.importorskip(package)

SUPPORT = Path(__file__).parents[1] / "experiments"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small plan."""
    monkeypatch.syspath_prepend(str(SUPPORT))
    from experiments_support import save_plan

    folder = tmp_path / "plan"
    folder.mkdir()
    return save_plan(folder)


def evaluate(run: Run, plan: Path, *options: object) -> Outcome:
    return run("nnr-eval", plan, "-o", plan.parents[1] / "out", "--threads", "2", *options)


def test_what_it_prints(run: Run, plan: Path) -> None:
    done = evaluate(run, plan)
    assert (done.code, done.err) == (0, "")
    first, *rows, last = done.out.splitlines()
    assert first.split()[:3] == ["network", "method", "BD-rate"]
    assert [row.split()[:2] for row in rows] == [["linear", "uniform"], ["linear", "integers"]]
    assert last == f"5 cells: {plan.parents[1] / 'out' / 'report.html'}"
    assert evaluate(run, plan, "-q") == Outcome(0, "", "")
    verbose = evaluate(run, plan, "-v").out
    assert "linear/integers/bits=4" in verbose
    assert verbose.endswith(done.out)


def test_json(run: Run, plan: Path) -> None:
    done = evaluate(run, plan, "--json", "--only", "*/bits=*")
    found = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert [cell["point"] for cell in found["cells"]] == ["", "bits=8", "bits=4"]
    assert found["run"]["command"].endswith("--only '*/bits=*'")
    assert found == json.loads((plan.parents[1] / "out" / "results.json").read_text())


def test_what_a_subject_prints_is_not_in_the_output(plan: Path) -> None:
    subjects = plan.with_name("subjects.py")
    subjects.write_text(f'print("loading")\n{subjects.read_text()}')
    words = [plan, "-o", plan.parents[1] / "out", "--threads", "2"]
    document = run_script("nnr-eval", *words, "--json", "--only", "*/bits=*")
    assert len(json.loads(document.stdout)["cells"]) == 3
    assert "loading" in document.stderr
    for target in ("-", "/dev/stdout"):
        piped = run_script(
            "nnr-eval", *words, "--stream", "linear/uniform/qp=-16", target, text=False
        )
        assert set(decode(piped.stdout)) == {"weight", "bias"}
        assert b"linear/uniform/qp=-16 -> /dev/stdout" in piped.stderr


def test_failed_cells(run: Run, plan: Path) -> None:
    text = plan.read_text().replace(
        "[[method]]", '[[subject]]\nsource = "subjects.py:unfit"\n[[method]]', 1
    )
    plan.write_text(text)
    done = evaluate(run, plan)
    assert done.code == 1
    lines = done.err.splitlines()
    assert len(lines) == 1  # that of the subject, not of its five cells
    assert lines[0].startswith("nnr-eval: unfit: '0.weight': is missing")
    assert "10 cells, 5 failed" in done.out


def test_failures_of_subjects_name_their_line(run: Run, plan: Path) -> None:
    subjects = plan.with_name("subjects.py")
    start, rest = subjects.read_text().split("    rng =", 1)
    subjects.write_text(f"{start}    raise ValueError('no more')\n    rng ={rest}")
    done = evaluate(run, plan)
    line = start.count("\n") + 1
    assert done.code == 1
    assert done.err == f"nnr-eval: linear: ValueError: no more (line {line} of subjects.py)\n"


def test_cells_that_fail_alone(run: Run, plan: Path) -> None:
    text = plan.read_text() + (
        '[[method]]\nname = "absent"\ncodec = "external"\npoints = { n = [1, 2] }\n'
        'options = { encode = ["/no/such", "{n}"], decode = ["x"] }\n'
    )
    plan.write_text(text)
    done = evaluate(run, plan, "--only", "*/n=*")
    reason = "/no/such cannot be run: No such file or directory"
    assert done.err.splitlines() == [f"nnr-eval: linear/absent/n={n}: {reason}" for n in (1, 2)]
    assert evaluate(run, plan, "--only", "*/n=2").out.startswith("1 cell, 1 failed: ")


def test_globs_that_match_nothing_give_a_warning(run: Run, plan: Path) -> None:
    options = 'dq = false, include = ["w*", "v*"], exclude = ["u"], overrides = { t = { qp = 1 } }'
    plan.write_text(plan.read_text().replace("dq = false", options))
    for _ in range(2):  # of cells that are there already, too
        done = evaluate(run, plan)
        assert done.code == 0
        assert done.err.splitlines() == [
            f"nnr-eval: warning: linear/uniform: '{glob}' matches no tensor"
            for glob in ("v*", "u", "t")
        ]
    assert evaluate(run, plan, "-q").err == ""


def test_stream_of_a_cell(run: Run, plan: Path, tmp_path: Path) -> None:
    target = tmp_path / "linear.nnr"
    done = evaluate(run, plan, "--stream", "linear/uniform/qp=-16", target)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"linear/uniform/qp=-16 -> {target}: {target.stat().st_size} B, ")
    assert "divergence" in done.out
    assert not (plan.parents[1] / "out" / "report.html").exists()  # nothing but this was asked for
    assert run("nnr-decode", target, "-o", tmp_path / "linear.npz", "-q").code == 0
    again = evaluate(run, plan, "--stream", "linear/uniform/qp=-16", target)
    assert again.code == 2
    assert f"--stream: '{target}' exists already; -f overwrites it" in again.err
    found = json.loads(evaluate(run, plan, "--json", "-f", "--stream", "*=-8", target).out)
    assert (found["cell"], found["bytes"]) == ("linear/uniform/qp=-8", target.stat().st_size)


def test_streams_of_cells_that_are_not_there(run: Run, plan: Path, tmp_path: Path) -> None:
    target = tmp_path / "linear.nnr"
    missing = evaluate(run, plan, "--stream", "linear/uniform/qp=-15", target)
    assert missing.code == 2
    assert "no cell 'linear/uniform/qp=-15'; the nearest are 'linear/uniform/qp=-16'" in missing.err
    several = evaluate(run, plan, "--stream", "*/qp=*", target)
    assert several.code == 2
    assert "'*/qp=*' matches 3 cells: 'linear/uniform/qp=-24', " in several.err
    assert evaluate(run, plan, "--stream", "*/bits=8", target, "--only", "*").code == 2
    assert evaluate(run, plan, "--stream", "*/bits=8", tmp_path / "no" / "file").code == 2
    assert not target.exists()
    text = plan.read_text().replace("subjects.py:linear", "subjects.py:unfit")
    plan.write_text(text)
    failed = evaluate(run, plan, "--stream", "*/bits=8", target)
    assert failed.code == 1
    assert failed.err.startswith("nnr-eval: error: unfit/integers/bits=8: '0.weight': is missing")
    assert not target.exists()


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [("bits = [8, 4]", "bits = [9]", "method[1].points.bits"), ("codec", "codecs", "codec")],
)
def test_bad_plans(run: Run, plan: Path, old: str, new: str, key: str) -> None:
    plan.write_text(plan.read_text().replace(old, new))
    done = evaluate(run, plan)
    assert (done.code, done.out) == (2, "")
    assert f"{plan}: " in done.err
    assert key in done.err
    assert not (plan.parents[1] / "out").exists()


def test_wrong_usage(run: Run, plan: Path, tmp_path: Path) -> None:
    assert evaluate(run, plan, "--data", tmp_path / "absent").code == 2
    assert evaluate(run, plan, "--only", "nothing").code == 2
    assert run("nnr-eval", plan).code == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("")
    assert run("nnr-eval", plan, "-o", other).code == 2
    assert run("nnr-eval", plan, "-o", other, "-f", "-q").code == 0
    missing = run("nnr-eval", tmp_path / "absent.toml", "-o", tmp_path / "out2")
    assert missing.code == 1
    assert "absent.toml" in missing.err


def test_data_of_the_environment(
    run: Run, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNR_DATA", str(tmp_path / "absent"))
    done = evaluate(run, plan)
    assert done.code == 2
    assert "absent" in done.err
    assert evaluate(run, plan, "--data", tmp_path, "-q").code == 0


def test_it_is_installed(tmp_path: Path) -> None:
    if not Path(sys.executable).with_name("nnr-eval").exists():
        pytest.skip("nnr-eval is not installed beside this Python")
    plan = ROOT / "conformance" / "plans" / "quick.toml"
    done = run_script("nnr-eval", plan, "-o", tmp_path / "out", "--only", "cnn/nnr/*", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "report.html").exists()
