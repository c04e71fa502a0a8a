"""What a run leaves: tables, plots and the page, each file complete or not at all."""

from __future__ import annotations

import io
import json
from pathlib import Path

from ...checkpoints.atomic import atomic_output
from ..fingerprints import plain_name
from .page import page
from .plots import KINDS, Kind, plot, svg_text
from .results import Results
from .tables import csv_text, document

PAGE = "report.html"
_DOTS_PER_INCH = 160


def write_report(results: Results, folder: Path) -> None:
    """Write ``results.csv``, ``results.json``, ``plots/`` and ``report.html``.

    Raises InvalidOptions or OSError if one cannot be written.
    """
    text = json.dumps(document(results), indent=1, allow_nan=False)
    _write(folder / "results.csv", csv_text(results).encode())
    _write(folder / "results.json", text.encode())
    plots = _write_plots(results, folder / "plots")
    _write(folder / PAGE, page(results, plots).encode())


def _write_plots(results: Results, folder: Path) -> dict[tuple[str, Kind], str]:
    """Write each subject's plots as SVG and PNG; return the SVG."""
    folder.mkdir(exist_ok=True)
    texts: dict[tuple[str, Kind], str] = {}
    for subject in results.subjects:
        stem = plain_name(subject.name)
        for kind in KINDS:
            figure = plot(subject, kind)
            text = texts[subject.name, kind] = svg_text(figure)
            _write(folder / f"{stem}-{kind}.svg", text.encode())
            image = io.BytesIO()
            figure.savefig(image, format="png", dpi=_DOTS_PER_INCH)
            _write(folder / f"{stem}-{kind}.png", image.getvalue())
    return texts


def _write(path: Path, data: bytes) -> None:
    with atomic_output(path, overwrite=True) as file:
        file.write(data)
