"""Plans: what they say, and how a wrong one is refused."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path

import pytest
from experiments_support import PLAN, save_plan

pytest.importorskip("torch")  # ready subjects are networks

from nnr_codec import EncodeOptions, InvalidOptions
from nnr_codec.experiments.methods.nnr import NnrCodec
from nnr_codec.experiments.methods.simple import IntegerCodec
from nnr_codec.experiments.plan import load_plan
from nnr_codec.experiments.runner import planned_cells
from nnr_codec.options import DecompositionOptions

ROOT = Path(__file__).parents[2]
README = ROOT / "conformance" / "README.md"
PLANS = sorted((ROOT / "conformance" / "plans").glob("*.toml"))


def test_what_a_plan_says(tmp_path: Path) -> None:
    plan = load_plan(save_plan(tmp_path))
    assert (plan.title, plan.anchor, plan.seed, plan.resamples) == (
        "A <small> plan",
        "uniform",
        0,
        50,
    )
    assert plan.drops == (0.5, 1.0, 2.0)
    (subject,) = plan.subjects
    assert subject.name == "linear"
    assert subject.source == f"{tmp_path.resolve()}/subjects.py:linear"
    assert (subject.stride, subject.limit, subject.bd_interval) == (1, None, (0.0, math.inf))
    uniform, integers = plan.methods
    assert [point.label for point in uniform.points] == ["qp=-24", "qp=-16", "qp=-8"]
    assert uniform.points[1].codec == NnrCodec(EncodeOptions(qp=-16, dq=False))
    assert [point.codec for point in integers.points] == [IntegerCodec(8), IntegerCodec(4)]


def test_cells_have_names_and_an_order(tmp_path: Path) -> None:
    plan = load_plan(save_plan(tmp_path))
    names = [cell.name for cell in planned_cells(plan)]
    assert names[0] == "linear/uniform/qp=-24"
    assert len(names) == 5
    assert [cell.name for cell in planned_cells(plan, "*/qp=-1*")] == ["linear/uniform/qp=-16"]
    with pytest.raises(InvalidOptions, match="matches no cell"):
        planned_cells(plan, "nothing")


def test_options_of_methods_and_points(tmp_path: Path) -> None:
    text = PLAN.replace(
        "options = { dq = false }",
        'options = { preset = "best", exclude = ["bias"], overrides = { "w*" = { dq = false } } }',
    ).replace("{ qp = [-24, -16, -8] }", "{ qp = [-24, -16], lambda_scale = [0.5, 2] }")
    plan = load_plan(save_plan(tmp_path, text))
    first, second = (point.codec for point in plan.methods[0].points)
    assert isinstance(first, NnrCodec)
    assert isinstance(second, NnrCodec)
    assert first.options.overrides == (("w*", {"dq": False}),)
    assert first.options.exclude == ("bias",)
    assert [(c.options.qp, c.options.lambda_scale) for c in (first, second)] == [
        (-24, 0.5),
        (-16, 2),
    ]
    assert plan.methods[0].points[1].label == "qp=-16, lambda_scale=2"


def test_a_grid_is_combined_with_points(tmp_path: Path) -> None:
    text = PLAN.replace(
        "qp = [-24, -16, -8] }", "qp = [-24, -8] }\ngrid = { lambda_scale = [0, 2] }"
    )
    labels = [point.label for point in load_plan(save_plan(tmp_path, text)).methods[0].points]
    assert labels == [f"qp={qp}, lambda_scale={scale}" for qp in (-24, -8) for scale in (0, 2)]


def test_points_reach_into_tables(tmp_path: Path) -> None:
    text = PLAN.replace(
        "options = { dq = false }",
        'options = { decomposition = { method = "lr", carriage = "factors" } }',
    ).replace("qp = [-24, -16, -8]", '"decomposition.rank" = [2, 0.5], "overrides.w*.qp" = [-9, 0]')
    first, second = load_plan(save_plan(tmp_path, text)).methods[0].points
    assert first.label == "decomposition.rank=2, overrides.w*.qp=-9"
    codecs = [point.codec for point in (first, second)]
    assert codecs == [
        NnrCodec(
            EncodeOptions(
                decomposition=DecompositionOptions("lr", rank, carriage="factors"),
                overrides=(("w*", {"qp": qp}),),
            )
        )
        for rank, qp in ((2, -9), (0.5, 0))
    ]


def test_plans_can_be_sent_to_workers(tmp_path: Path) -> None:
    plan = load_plan(save_plan(tmp_path))
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize(
    ("old", "new", "key", "reason"),
    [
        ('title = "A <small> plan"', "title = 3", "title", "not a string"),
        ("resamples = 50", "resample = 50", "resample", "unknown"),
        ("resamples = 50", "resamples = 0", "resamples", "less than 1"),
        ("resamples = 50", "resamples = true", "resamples", "not a whole number"),
        ("resamples = 50", "seed = -1", "seed", "less than 0"),
        ("resamples = 50", "drops = [0]", "drops", "not a number above 0"),
        ("resamples = 50", "drops = [inf]", "drops", "below infinity"),
        ("resamples = 50", "drops = []", "drops", "empty"),
        ('anchor = "uniform"', 'anchor = "none"', "anchor", "not a method"),
        ("subjects.py:linear", "absent.py:linear", "subject[0].source", "no file"),
        ("subjects.py:linear", "resnet0", "subject[0].source", "neither"),
        ("subjects.py:linear", "vdsr_set5", "subject[0].source", "subjects/vdsr.py:vdsr_set5"),
        ('"subjects.py:linear"', '"subjects.py:linear"\nstride = 0', "subject[0].stride", "less"),
        ('"subjects.py:linear"', '"subjects.py:linear"\nlimit = 0', "subject[0].limit", "less"),
        (
            '"subjects.py:linear"',
            '"subjects.py:linear"\nbd_interval = [1, 0.1]',
            "subject[0].bd_interval",
            "more than",
        ),
        ('codec = "int8"', 'codec = "int9"', "method[1].codec", "none of"),
        ('name = "integers"', 'name = "uniform"', "method", "more than once"),
        ("bits = [8, 4]", "bits = [8, 8]", "method[1].points", "more than once"),
        ("bits = [8, 4]", "bits = [8, 9]", "method[1].points.bits", "from 2 to 8"),
        ("bits = [8, 4]", "bits = 8", "method[1].points.bits", "not a list"),
        ("bits = [8, 4]", "bit = [8]", "method[1].points.bit", "unknown"),
        ("qp = [-24, -16, -8]", "qp = [-24], dq = []", "method[0].points.dq", "not a list"),
        ("qp = [-24, -16, -8]", "qp = [-24, 1], dq = [true]", "method[0].points", "equally long"),
        ("qp = [-24, -16, -8]", "qp = [-999]", "method[0].points.qp", "whole number"),
        ("qp = [-24, -16, -8] }", "qp = [1] }\ngrid = { dq = 1 }", "method[0].grid.dq", "a list"),
        (
            "qp = [-24, -16, -8] }",
            "qp = [1] }\ngrid = { qp = [2] }",
            "method[0].grid.qp",
            "the same",
        ),
        (
            "points = { qp = [-24, -16, -8] }",
            "grid = { qp = [-999] }",
            "method[0].grid.qp",
            "whole",
        ),
        ("qp = [-24, -16, -8]", '"dq.a" = [1]', "method[0].points.dq.a", "not a table"),
        (
            "qp = [-24, -16, -8]",
            '"decomposition.energy" = [2]',
            "method[0].points.decomposition.energy",
            "is not a finite number above 0 and at most 1",
        ),
        ("dq = false", "calibration_stride = 0", "method[0].options.calibration_stride", "1 or"),
        (
            "dq = false",
            'calibration_without = ["rows"]',
            "method[0].options.calibration_without",
            "no effect without calibration_stride",
        ),
        (
            "dq = false",
            'calibration_stride = 1, calibration_without = ["row"]',
            "method[0].options.calibration_without",
            "'row' is none of rows, columns",
        ),
        (
            "dq = false",
            'calibration_stride = 1, calibration_without = "rows"',
            "method[0].options.calibration_without",
            "is not a list",
        ),
        ("dq = false", "dp = false", "method[0].options.dp", "unknown"),
        ("dq = false", 'preset = "worst"', "method[0].options.preset", "not one of"),
        ("dq = false", "qp_density = { a = 1 }", "method[0].options.qp_density", "whole number"),
        ("[[method]]", "[[methods]]", "method", "one [[method]] or more"),
    ],
)
def test_wrong_plans(tmp_path: Path, old: str, new: str, key: str, reason: str) -> None:
    assert old in PLAN
    path = save_plan(tmp_path, PLAN.replace(old, new))
    with pytest.raises(InvalidOptions) as caught:
        load_plan(path)
    assert str(caught.value).startswith(f"{path}: {key}: ")
    assert reason in str(caught.value)


def test_what_is_no_toml(tmp_path: Path) -> None:
    path = save_plan(tmp_path, "title =")
    with pytest.raises(InvalidOptions, match=r"plan\.toml: is not a TOML file"):
        load_plan(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidOptions, match="is not a TOML file"):
        load_plan(path)
    with pytest.raises(FileNotFoundError):
        load_plan(tmp_path / "absent.toml")


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "seed = " + "9" * 5000])
def test_plans_that_the_parser_cannot_hold(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(InvalidOptions, match="is not a TOML file"):
        load_plan(tmp_path / "plan.toml")


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_our_plans_are_right(path: Path) -> None:
    assert planned_cells(load_plan(path))


def test_there_are_plans() -> None:
    assert {path.stem for path in PLANS} >= {
        "quick",
        "quantization",
        "peer",
        "ce1",
        "decomposition",
        "joint",
    }


def test_the_plan_of_the_readme_is_right(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "my_networks.py").write_text("")
    path = tmp_path / "plan.toml"
    path.write_text(text)
    assert len(planned_cells(load_plan(path))) == 8
