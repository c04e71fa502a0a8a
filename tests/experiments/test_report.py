"""What a run leaves: tables, plots, and a page that stands alone."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from experiments_support import PLAN, save_plan

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("zstandard")
pytest.importorskip("constriction")
pytest.importorskip("torch")

from nnr_codec.experiments.report.bootstrap import BytesAtLoss, marks_of_losses
from nnr_codec.experiments.report.markup import signed_text, small_text, whole_text
from nnr_codec.experiments.report.plots import KINDS, plot, styles, svg_text
from nnr_codec.experiments.report.results import Results
from nnr_codec.experiments.runner import run_plan
from nnr_codec.report import size_text

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page; complains of those that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.identities: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.tables: list[list[list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.identities.append(value or "")
            elif name in ("src", "href", "xlink:href"):
                self.references.append(value or "")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}>"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """A folder of results, and these; one of the cells failed."""
    folder = tmp_path_factory.mktemp("report")
    text = PLAN.replace('name = "integers"', 'name = "in<b>tegers & more"') + (
        '\n[[method]]\nname = "absent"\ncodec = "external"\n'
        'options = { encode = ["/no/such/program<i>"], decode = ["x"] }\n'
    )
    plan = save_plan(folder, text)
    return folder / "out", run_plan(plan, folder / "out")


@pytest.fixture(scope="module")
def page(made: tuple[Path, Results]) -> Page:
    """The page, parsed."""
    parsed = Page()
    parsed.feed((made[0] / "report.html").read_text())
    parsed.close()
    return parsed


def test_the_page_stands_alone(page: Page) -> None:
    assert page.open == []
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    assert len(set(page.identities)) == len(page.identities)
    assert {reference[1:] for reference in page.references} <= set(page.identities)


def test_names_are_text(page: Page) -> None:
    text = "".join(page.text)
    assert "A <small> plan" in text
    assert "in<b>tegers & more" in text
    assert "/no/such/program<i> cannot be run" in text


def test_the_page_has_every_cell(page: Page, made: tuple[Path, Results]) -> None:
    (cells,) = (table for table in page.tables if table[0][:3] == ["method", "point", "bytes"])
    assert [row[:2] for row in cells[1:]] == [
        ["uniform", "qp=-24"],
        ["uniform", "qp=-16"],
        ["uniform", "qp=-8"],
        ["in<b>tegers & more", "bits=8"],
        ["in<b>tegers & more", "bits=4"],
    ]
    sizes = [found.record["bytes"] for cell, found in made[1].cells if cell.method != "absent"]
    assert [int(row[2].replace("\u202f", "")) for row in cells[1:]] == sizes
    widths = [{len(row) for row in table} for table in page.tables]
    assert all(len(width) == 1 for width in widths)


def test_marks_have_tooltips(made: tuple[Path, Results]) -> None:
    text = (made[0] / "report.html").read_text()
    marks = re.findall(r'<g class="mark"><title>([^<]*)</title>', text)
    assert len(marks) >= 5 + 5 - 1  # a divergence of 0 would have no place
    assert sum("bits=4" in mark for mark in marks) == 2
    assert "#1a1b1e" not in text.split("</style>")[1].replace("var(--ink)", "")


def test_tables_say_the_same(made: tuple[Path, Results]) -> None:
    folder, _ = made
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = json.loads((folder / "results.json").read_text())
    assert len(rows) == len(found["cells"]) == 7
    for row, cell in zip(rows, found["cells"], strict=True):
        assert row["method"] == cell["method"]
        assert row["bytes"] == str(cell.get("bytes", ""))
        assert row["top1"] == str(cell.get("top1", ""))
    assert [row["status"] for row in rows] == ["measured"] * 6 + ["failed"]
    assert found["run"]["command"] == "nnr-eval plan.toml -o out"
    assert found["plan"]["anchor"] == "uniform"
    assert found["bd_rates"][0]["method"] == "in<b>tegers & more"
    breakdown = found["breakdowns"]["linear/uniform/qp=-16"]
    assert sum(breakdown.values()) == found["cells"][2]["bytes"]
    assert {"loss", "bytes", "low", "high"} <= found["bytes_at_loss"][0].keys()


def test_plots_are_files_too(made: tuple[Path, Results]) -> None:
    folder, results = made
    for kind in KINDS:
        assert (folder / "plots" / f"linear-{kind}.png").read_bytes().startswith(b"\x89PNG")
        text = (folder / "plots" / f"linear-{kind}.svg").read_text()
        assert xml.etree.ElementTree.fromstring(text).tag.endswith("svg")
        (subject,) = results.subjects
        assert svg_text(plot(subject, kind)) == text


def test_methods_look_different() -> None:
    drawn = styles([f"method {index}" for index in range(8)])
    assert len({style.colour for style in drawn.values()}) == 8
    assert len({style.marker for style in drawn.values()}) == 8


NAN = (
    "import sys, numpy as np; model = dict(np.load(sys.argv[1])); "
    "np.savez(sys.argv[2], **{name: v * np.nan for name, v in model.items()})"
)


def test_outputs_that_are_not_finite(tmp_path: Path) -> None:
    copy = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
    text = PLAN + (
        '\n[[method]]\nname = "broken"\ncodec = "external"\n[method.options]\n'
        f'encode = ["{{python}}", "-c", "{copy}", "{{model}}", "{{stream}}"]\n'
        f'decode = ["{{python}}", "-c", "{NAN}", "{{stream}}", "{{decoded}}"]\n'
    )
    results = run_plan(save_plan(tmp_path, text), tmp_path / "out", only="linear/[bu]*")
    assert not results.failures
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    broken = found["cells"][-1]
    assert (broken["method"], broken["top1"], broken["divergence"]) == ("broken", 0.0, None)
    assert "outputs that are not finite" in (tmp_path / "out" / "report.html").read_text()


ODD_NAMES = ["a b", "a-b", "$x_1$", r"\1 \$", "<i>&", "é" * 300, "_hidden", "n" * 300, "m" * 300]


def test_names_of_all_sorts(tmp_path: Path) -> None:
    """They are text on the page, and each has its files and its anchor."""
    text = PLAN.partition("[[subject]]")[0].replace('anchor = "uniform"\n', "")
    for name in ODD_NAMES:
        text += f"[[subject]]\nsource = 'subjects.py:odd'\nname = '{name}'\n"
    for name in ODD_NAMES:
        text += f"[[method]]\ncodec = 'int8'\nname = '{name}'\n"
    plan = save_plan(tmp_path, text)
    with (tmp_path / "subjects.py").open("a") as file:
        file.write(ODD_SUBJECT)
    results = run_plan(plan, tmp_path / "out")
    assert not results.failures
    assert len(list((tmp_path / "out" / "plots").iterdir())) == 4 * len(ODD_NAMES)
    parsed = Page()
    parsed.feed((tmp_path / "out" / "report.html").read_text())
    parsed.close()
    assert parsed.open == []
    assert len(set(parsed.identities)) == len(parsed.identities)
    assert {reference[1:] for reference in parsed.references} <= set(parsed.identities)
    whole = "".join(parsed.text)
    for text in (*ODD_NAMES, "<b>top</b>", "<u>far</u>"):
        assert text in whole
    for path in (tmp_path / "out" / "plots").glob("*.svg"):
        root = xml.etree.ElementTree.parse(path).getroot()
        shown = {"".join(element.itertext()) for element in root.iter() if element.text}
        assert {"a b", "a-b", "$x_1$", "_hidden", "n" * 40 + "…", "m" * 40 + "…"} <= shown


ODD_SUBJECT = """
from dataclasses import replace
from nnr_codec.experiments.measures.metrics import Classification

class Odd(Classification):
    primary = "<b>top</b>"
    divergence = "<u>far</u>"
    def scores(self, outputs, targets):
        return {self.primary: super().scores(outputs, targets)["top1"]}

def odd():
    return replace(linear(None), metric=Odd())
"""


@pytest.mark.parametrize(
    "seconds", ["77.5", "NaN", "Infinity", "-1", "1e999", "true", "null", "'x'", "{}"]
)
def test_times_that_are_none(tmp_path: Path, seconds: str) -> None:
    """The wall time counts instead."""
    copy = f"import shutil, sys; shutil.copy(*sys.argv[1:]); print('{{\\\"S\\\": {seconds}}}')"
    copy = copy.replace("'x'", '\\"x\\"')
    text = PLAN.partition("[[method]]")[0].replace("uniform", "copy") + (
        '[[method]]\nname = "copy"\ncodec = "external"\n[method.options]\n'
        f'encode = ["{{python}}", "-c", "{copy.replace("S", "encode_seconds")}", '
        '"{model}", "{stream}"]\n'
        f'decode = ["{{python}}", "-c", "{copy.replace("S", "decode_seconds")}", '
        '"{stream}", "{decoded}"]\n'
    )
    results = run_plan(save_plan(tmp_path, text), tmp_path / "out")
    assert not results.failures
    row = json.loads((tmp_path / "out" / "results.json").read_text())["cells"][1]
    for name in ("encode_seconds", "decode_seconds"):
        assert row[name] == 77.5 if seconds == "77.5" else 0 < row[name] < 60


def test_nothing_measured_leaves_a_page(tmp_path: Path) -> None:
    plan = save_plan(tmp_path, PLAN.replace(":linear", ":needy"))
    results = run_plan(plan, tmp_path / "out")
    assert len(results.failures) == 5
    parsed = Page()
    parsed.feed((tmp_path / "out" / "report.html").read_text())
    assert "5 cells failed" in "".join(parsed.text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(5, "5 B"), (999, "999 B"), (1000, "1.00 kB"), (33_000, "33.0 kB"),
     (23_456, "23.5 kB"), (999_600, "1.00 MB"), (123_456_789, "123 MB"), (2.5e12, "2500 GB")],
)  # fmt: skip
def test_sizes(count: float, text: str) -> None:
    assert size_text(count) == text


def test_numbers() -> None:
    assert whole_text(1234567) == "1\u202f234\u202f567"
    assert (signed_text(-0.04, 1), signed_text(-0.06, 1)) == ("0.0", "\N{MINUS SIGN}0.1")
    assert signed_text(2, 2) == "+2.00"
    assert (small_text(0), small_text(0.00012), small_text(1e-9)) == ("0", "0.00012", "1.00e-09")
    assert small_text(None) == "\N{INFINITY}"


def losses(*figures: tuple[int | None, int | None, int | None]) -> dict[str, BytesAtLoss]:
    return {
        str(number): BytesAtLoss(1.0, count, False, low, high)
        for number, (count, low, high) in enumerate(figures)
    }


def test_ties() -> None:
    """Methods of which one lies in the other's interval are not told from each other."""
    best = (100, 90, 108)
    marks = marks_of_losses(
        losses(best, (107, 105, 120), (120, 99, 140), (120, 110, 140), (None, 95, None))
    )
    assert marks == {"0": "best", "1": "tie", "2": "tie"}
    assert marks_of_losses(losses((None, None, None))) == {}
    unbounded = (100, None, None)
    assert marks_of_losses(losses(unbounded, (101, 101, 102))) == {"0": "best"}


def test_what_the_page_tells_of_its_making(made: tuple[Path, Results]) -> None:
    """Options, machine and hashes; and what the figures are, in words."""
    report = (made[0] / "report.html").read_text()
    assert "<summary>The plan, with the options of each method</summary>" in report
    for word in ("<b>KL</b>", "<b>BD-rate</b>", "<b>Weight error</b>", "<dt>machine</dt>"):
        assert word in report
    assert "<dt>SHA-256</dt><dd>plan <code>" in report
