"""Plans that train: their rows, the tables of these, and the trainings on the digits networks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("zstandard")
pytest.importorskip("constriction")

import torch

from conformance import trained
from conformance.studies import trained_latency
from conformance.studies.pareto import front, pareto_plot
from conformance.studies.trained_table import best_table, points, ratio_table, row_table
from conformance.subjects import digits_networks
from conformance.trainings import methods, resumable, training
from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.evaluation import trained_module
from nnr_codec.experiments.plan import load_plan
from nnr_codec.experiments.runner import planned_cells, run_plan
from nnr_codec.experiments.training_run import TrainingRun

CONFORMANCE = Path(trained.__file__).parent
TRAIN = f"{CONFORMANCE}/trainings/methods.py"
SHORT = "digits_steps = 10, steps = 1"
RATE = f'train = "{TRAIN}:for_rate", fraction = 0.5, strength = 1.0, {SHORT}'
PLAN = f"""
[[subject]]
source = "{CONFORMANCE}/subjects/digits_networks.py:cnn"
name = "digits_cnn"
stride = 4

[[method]]
name = "rate"
codec = "trained"
options = {{ {RATE} }}
grid = {{ seed = [0, 1] }}

[[method]]
name = "rate of factors"
codec = "trained"
options = {{ {RATE}, method = "tucker2", ratio = 2 }}

[[method]]
name = "fine-tuned"
codec = "trained"
options = {{ train = "{TRAIN}:fine_tuned", {SHORT}, rule = "common" }}
points = {{ method = ["lr", "ce1"], ratio = [2.0, 2.0] }}

[[method]]
name = "projected"
codec = "trained"
options = {{ train = "{TRAIN}:projected", {SHORT}, projections = 2, ratio = 2 }}
points = {{ form = ["tucker2", "lr"], tiles = [[1, 1], [2, 2]] }}

[[method]]
name = "tuned at ranks"
codec = "trained"
options = {{ train = "{TRAIN}:tuned_at_ranks", {SHORT}, form = "tucker2", ratio = 2 }}

[[method]]
name = "in parts"
codec = "trained"
options = {{ train = "{TRAIN}:tuned_in_parts", {SHORT}, method = "cp", ratio = 4, parts = 2 }}

[[method]]
name = "pruned"
codec = "trained"
options = {{ train = "{TRAIN}:pruned", {SHORT}, method = "cp", ratio = 4, teacher = false }}
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command with the plan above, whose rows are beside it."""
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    monkeypatch.setattr(trained, "ROWS", tmp_path / "rows")

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trained", str(plan), *words, "--threads", "1"])
        return trained.main()

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_rows_and_tables(
    command: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("-o", str(tmp_path / "out")) == 0
    path = tmp_path / "rows" / "plan.jsonl"
    rows = trained.read_rows(path)
    assert [row["cell"] for row in rows] == [
        "digits_cnn/rate/seed=0", "digits_cnn/rate/seed=1", "digits_cnn/rate of factors",
        "digits_cnn/fine-tuned/method=lr, ratio=2.0", "digits_cnn/fine-tuned/method=ce1, ratio=2.0",
        "digits_cnn/projected/form=tucker2, tiles=[1, 1]",
        "digits_cnn/projected/form=lr, tiles=[2, 2]", "digits_cnn/tuned at ranks",
        "digits_cnn/in parts", "digits_cnn/pruned",
    ]  # fmt: skip
    for row in rows:
        assert 0.2 < row["score"] <= 1
        assert len(row["stream"]) == len(row["training"]) == 64
    assert rows[0]["stream"] != rows[1]["stream"]  # the seed counts
    assert rows[0]["training"] == rows[1]["training"] != rows[2]["training"]
    dense, factors, low_rank = rows[0], rows[2], rows[3]
    assert dense["bytes"] < dense["of"]["bytes"] / 8
    assert dense["parameters"] == dense["of"]["parameters"]
    assert factors["parameters"] < 0.55 * dense["parameters"]
    assert low_rank["macs"] < dense["macs"]
    assert rows[6]["parameters"] == dense["parameters"]  # tiles are coded dense
    assert rows[7]["parameters"] == rows[5]["parameters"] < dense["parameters"]
    assert all(dense["parameters"] / 4.2 < row["parameters"] for row in rows[8:])
    assert all(row["parameters"] < dense["parameters"] / 4 for row in rows[8:])
    before = path.read_bytes()
    assert command("-o", str(tmp_path / "out")) == 0  # nothing is left to do
    assert command("--table") == 0
    assert path.read_bytes() == before
    assert f"10 cells have rows in {path}, 0 of them by other scripts" in capsys.readouterr().err
    assert command("--table") == 0
    assert command("--plot", str(tmp_path)) == 0
    assert (tmp_path / "plan-digits_cnn.svg").stat().st_size > 1000
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| digits_cnn | rate |") for line in lines) == 2  # one in each table
    given = [str(tmp_path / "plan.toml"), "-o", str(tmp_path / "out"), "--only", "*/rate/*"]
    monkeypatch.setattr(sys, "argv", ["trained_latency", *given, "--rounds", "1", "--seconds", "0"])
    monkeypatch.setattr(trained_latency, "ROWS", tmp_path / "rows")
    trained_latency.main()
    timed = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[4] for line in timed] == ["1", "32"] * 2
    assert len({line.split(" | ")[2] for line in timed}) == 2
    assert all(0.1 < float(line.split(" | ")[5]) < 10 for line in timed)
    with pytest.raises(SystemExit):
        command()


def test_what_is_wrong(command: Any, tmp_path: Path, capsys: Any) -> None:
    for words in (["--only", "x*", "-o", "out"], ["-o", str(tmp_path / "plan.toml")]):
        with pytest.raises(SystemExit):
            command(*words)
        assert "error: " in capsys.readouterr().err


def test_time_that_is_up(command: Any, tmp_path: Path) -> None:
    assert command("-o", str(tmp_path / "out"), "--minutes", "0.0001") == 1
    assert not (tmp_path / "rows").exists()


def row(point: str, seed: int, score: float, size: int, **more: Any) -> dict[str, Any]:
    of = {"score": 0.9, "bytes": 4000, "parameters": 1000, "macs": 5000}
    line = {"subject": "net", "method": "m", "point": point, "score": score, "bytes": size}
    line |= {"divergence": 0.0125}
    line |= {"parameters": 500, "macs": 2500, "of": of, "cell": f"net/m/{point}, seed={seed}"}
    return json.loads(json.dumps(line | more))


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (methods.for_rate, {"fraction": 1.0, "strength": 1.0}),
        (methods.for_calibrated_rate, {"fraction": 1.0, "strength": 1.0, "qp": -20}),
        (methods.for_rate_then_calibrated, {"fraction": 0.5, "strength": 0.3, "qp": -20}),
        (methods.fine_tuned, {"method": "lr", "ratio": 2.0}),
        (methods.projected, {"form": "tucker2", "ratio": 2.0, "projections": 2}),
        (methods.tuned_at_ranks, {"form": "tucker2", "ratio": 2.0}),
    ],
)
def test_interrupted_trainings_give_the_same_stream(
    function: Any, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = digits_networks.cnn()
    monkeypatch.setattr(resumable, "_SAVE_SECONDS", 0.0)
    steps = 0

    def stream(state: Path | None) -> bytes:
        run = TrainingRun(subject, trained_module(subject).eval(), None, 0, state)
        training._last.clear()
        result: bytes = function(run, steps=1, digits_steps=12, **options)
        return result

    whole = stream(None)
    plain = training.distilled

    def stopping(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(training, "distilled", stopping)
    with pytest.raises(KeyboardInterrupt):
        stream(tmp_path / "state")
    assert stream(tmp_path / "state") == whole
    assert steps == 13  # one of them twice


@pytest.mark.parametrize("function", ["for_calibrated_rate", "for_rate_then_calibrated"])
def test_cells_that_differ_by_qp_alone_train_once(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = f'fraction = 0.3, strength = 0.1, method = "tucker2", {SHORT}'
    method = f"""[[method]]
codec = "trained"
options = {{ train = "{TRAIN}:{function}", {options}, ratio = 3.0 }}
grid = {{ seed = [0, 1], qp = [-24, -16] }}
"""
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.partition("[[method]]")[0] + method)
    steps = 0
    plain = training.distilled

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return plain(*arguments)

    monkeypatch.setattr(training, "distilled", counted)
    results = run_plan(path, tmp_path / "out")
    assert not results.failures
    sizes = [outcome.record["bytes"] for _, outcome in results.cells]
    assert sizes[1] < 0.8 * sizes[0]
    assert sizes[3] < 0.8 * sizes[2]
    assert steps == 2 * 10


def test_parts_see_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    steps: list[int] = []
    batch = resumable._batch

    def watched(count: int, schedule: Any, step: int) -> Any:
        chosen = batch(count, schedule, step)
        if not step:
            seen.append(chosen.numpy().tobytes())
            steps.append(schedule.steps)
        return chosen

    monkeypatch.setattr(resumable, "_batch", watched)
    subject = digits_networks.cnn()
    run = TrainingRun(subject, trained_module(subject).eval(), None, 0, None)
    methods.tuned_in_parts(run, method="lr", ratio=3.0, parts=3, steps=1, digits_steps=11)
    assert len(set(seen)) == 3
    assert sum(steps) == 11


def test_ratios_below_two_are_pruned_to() -> None:
    subject = digits_networks.cnn()
    run = TrainingRun(subject, trained_module(subject).eval(), None, 0, None)
    stream = methods.pruned(run, method="lr", ratio=1.5, steps=1, digits_steps=8)
    whole = methods.fine_tuned(run, method="lr", ratio=1.5, steps=1, digits_steps=1)
    assert abs(len(stream) / len(whole) - 1) < 0.1
    with pytest.raises(InvalidOptions, match="no parts"):
        methods.tuned_in_parts(run, method="none", ratio=1.5, steps=1)


def test_rules_and_forms_that_do_not_go_together() -> None:
    subject = digits_networks.cnn()
    run = TrainingRun(subject, trained_module(subject).eval(), None, 0, None)
    with pytest.raises(InvalidOptions, match="common"):
        methods.decomposed(run, "tucker2", 2.0, "common")


def test_rows_of_other_scripts_and_other_processes(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows" / "plan.jsonl"
    cell = "digits_cnn/rate/seed=0"
    trained.append_row(path, {"cell": cell, "training": "0"})
    trained.append_row(path, {"cell": cell, "training": "1"})
    with path.open("a") as file:
        file.write('{"cell": "torn')
    rows = trained.read_rows(path)
    assert rows == [{"cell": cell, "training": "0"}]
    plan = load_plan(tmp_path / "plan.toml")
    assert trained.earlier_rows(plan, rows) == [cell]
    today = trained.training_digest(planned_cells(plan, cell)[0])
    assert trained.earlier_rows(plan, [{"cell": cell, "training": today}]) == []


def test_what_is_on_the_front() -> None:
    rows = [row("a", 0, 0.89, 100), row("b", 0, 0.89, 90, macs=2500), row("c", 0, 0.89, 95, macs=9)]
    rows += [row("d", 0, 0.8, 1, macs=1), row("e", 0, 0.9, 200, macs=5000)]
    kept = [point for point in points(rows) if point.drop <= 2]
    assert [point.label for point in front(kept)] == ["c", "b"]
    figure = pareto_plot(rows, "net", 2.0)
    *marks, line = figure.axes[0].lines
    assert len(marks) == 1
    assert sorted(marks[0].get_ydata()) == [0.09, 0.095, 0.1, 0.2]
    assert list(line.get_ydata()) == [0.095, 0.09]
    rows = [row("a", 0, 0.89, 100), row("b", 0, 0.5, 90, method="lost")]
    (alone,) = pareto_plot(rows, "net", 2.0).axes[0].lines  # of what is within; no front
    assert alone.get_label() == "m"


def test_means_over_seeds() -> None:
    rows = [row("a", 0, 0.89, 100), row("b", 0, 0.88, 50), row("a", 1, 0.87, 200)]
    first, second = points(rows)
    assert (first.label, second.label) == ("a", "b")
    assert first.drop == pytest.approx(2.0)
    assert first.bytes == 150
    assert "| 2.00 | 2.00 | 150 | 26.67 | 2.00 | 1.00 … 3.00 |" in row_table(rows)
    assert (
        best_table(rows, (1.0, 2.5)).splitlines()[-1]
        == "| net | m | - | 50 (÷ 80.00, MACs ÷ 2.00) |"
    )
    by_ratio = [row("ratio=2.0, x=1", 0, 0.89, 1), row("ratio=2.0, x=1", 1, 0.88, 1)]
    by_ratio += [row("ratio=12.1", 0, 0.9, 1, method="other"), row("a", 0, 0.9, 1)]
    assert ratio_table(by_ratio).splitlines() == [
        "| net | 2x | 12.1x |",
        "| --- | ---: | ---: |",
        "| m | 1.50 (1.00 … 2.00) / 0.013 | - |",
        "| other | - | 0.00 / 0.013 |",
    ]
    by_ratio.append(row("ratio=2.0, x=2", 0, 0.9, 1))
    assert ratio_table(by_ratio).splitlines()[2:4] == [
        "| m, x=1 | 1.50 (1.00 … 2.00) / 0.013 | - |",
        "| m, x=2 | 0.00 / 0.013 | - |",
    ]
    unknown = [row("a", 0, 0.9, 100, macs=None, divergence=None)]
    assert ratio_table([row("ratio=2", 0, 0.9, 1, divergence=None)]).endswith("| 0.00 /  |")
    assert "(÷ 40.00)" in best_table(unknown, (1.0,))


PLANS = [
    "bytes_trained", "ce1_trained", "ht2_trained", "joint_trained", "projection", "ways_to_train"
]  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_plans_and_their_rows(name: str) -> None:
    """Plans can be read, and each row is of a cell of its plan."""
    cells = {cell.name for cell in planned_cells(load_plan(CONFORMANCE / "plans" / f"{name}.toml"))}
    rows = trained.read_rows(CONFORMANCE / "rows" / f"{name}.jsonl")
    names = [row["cell"] for row in rows]
    assert len(set(names)) == len(names)
    assert set(names) <= cells
