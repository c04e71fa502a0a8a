"""Pieces of HTML: pages, cards, tables, figures for people, escaping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
_TAG = re.compile("<[^>]*>")


@dataclass(frozen=True)
class Shown:
    """A cell of a table."""

    text: str  # HTML
    value: float | None = None  # what it is sorted by; None: the text
    classes: str = ""
    title: str = ""  # a tooltip, not HTML

    def html(self, label: str = "") -> str:
        """Return the table's cell; `label` is its column's, where it stands by itself."""
        attributes = f' class="{self.classes}"' if self.classes else ""
        attributes += f' data-label="{escape(label)}"' if label else ""
        attributes += f' data-value="{self.value!r}"' if self.value is not None else ""
        attributes += f' title="{escape(self.title)}"' if self.title else ""
        return f"<td{attributes}>{self.text}</td>"


def whole_page(title: str, body: str) -> str:
    """Return a page that needs no other file; all but the title is HTML."""
    style, script = (files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
                     for name in ("page.css", "page.js"))  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def card(title: str, body: str, *, identity: str = "", classes: str = "card") -> str:
    """Return a part of a page; all but the title is HTML."""
    attribute = f' id="{identity}"' if identity else ""
    heading = f"<h2>{escape(title)}</h2>\n"
    return f'<section class="{classes}"{attribute}>{heading}{body}</section>\n'


def head(title: str) -> str:
    """Return a page's title, with the button between light and dark."""
    return (
        f'<div class="head"><h1>{escape(title)}</h1>'
        '<button id="theme" type="button">Light / dark</button></div>\n'
    )


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[Shown]],
    *,
    sortable: bool = False,
    stacks: bool = False,
    last_is_mean: bool = False,
) -> str:
    """Return a table that scrolls by itself where it is too wide; or, if it `stacks`, whose rows
    are then lists."""
    labels = [_TAG.sub("", text) if stacks and i else "" for i, text in enumerate(header)]
    cells_of_rows = [
        "".join(cell.html(label) for cell, label in zip(row, labels, strict=True)) for row in rows
    ]
    heads = "".join(f'<th scope="col">{text}</th>' for text in header)
    lines = [f"<tr>{row}</tr>" for row in cells_of_rows]
    if last_is_mean and lines:
        lines[-1] = lines[-1].replace("<tr>", '<tr class="mean">', 1)
    kind = ' class="sortable"' if sortable else ' class="stacks"' if stacks else ""
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def whole_text(count: int) -> str:
    """Return a whole number in groups of three digits."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def signed_text(value: float, digits: int) -> str:
    """Return a number with its sign."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS) if float(text) else f"{0:.{digits}f}"


def small_text(value: float | None) -> str:
    """Return a number of three digits, however small."""
    if value is None:
        return "∞"
    return f"{value:.3g}" if value == 0 or value >= 1e-4 else f"{value:.2e}"
