"""What the commands that print rows of figures share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from nnr_codec.cli.text import table


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a command line with `--json`; `description` is shown as it is."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def as_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the members `columns`: floats to four digits, nothing for None."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return "" if value is None else str(value)

    return table(columns, [[cell(row[column]) for column in columns] for row in rows])
