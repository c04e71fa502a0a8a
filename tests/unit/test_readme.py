"""README.md and the guide: their Python examples run, and their command lines parse."""

from __future__ import annotations

import argparse
import doctest
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnr_codec.cli import decode, diff, encode, evaluate, info

ROOT = Path(__file__).parents[2]
PAGES = {
    path: (ROOT / path).read_text(encoding="utf-8")
    for path in ("README.md", "nnr_codec/GUIDE.md", "conformance/README.md")
}
PAGES_WITH_EXAMPLES = ["README.md", "nnr_codec/GUIDE.md"]
PARSERS = {
    "nnr-encode": encode._parser,
    "nnr-decode": decode._parser,
    "nnr-info": info._parser,
    "nnr-diff": diff._parser,
    "nnr-eval": evaluate._parser,
}
MAIN_LINE = (
    "python3 -m venv --clear .venv && .venv/bin/pip install . && "
    ".venv/bin/nnr-encode conformance/models/digits_cnn.safetensors -o digits.nnr -f && "
    ".venv/bin/nnr-decode digits.nnr -o digits.safetensors -f && "
    ".venv/bin/python conformance/models/digits.py "
    "conformance/models/digits_cnn.safetensors digits.safetensors digits.nnr"
)
DIGEST = "0" * 64
TEST_LINE = 'python3 -m venv --clear .venv && .venv/bin/pip install ".[test]" && .venv/bin/pytest'


def _blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the single commands of shell lines, without what joins them."""
    for line in text.replace("\\\n", "").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in words:
            if word in ("&&", "|", ";", "(", ")"):
                yield command
                command = []
            else:
                command.append(word)
        yield command


def _nnr_commands() -> list[list[str]]:
    blocks = [block for page in PAGES for block in _blocks("sh", page)]
    commands = [c for block in blocks for c in _commands(block) if c]
    return [command for command in commands if Path(command[0]).name in PARSERS]


def _run_examples(page: str, *languages: str) -> None:
    blocks = [block for language in languages for block in _blocks(language, page)]
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page, page, 0)
    assert len(examples.examples) > 5
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(examples, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES)
def test_python_examples(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _run_examples(page, "python")


@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES)
def test_torch_examples(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those marked `py`, which go on from the others."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    assert _blocks("py", page)
    _run_examples(page, "python", "py")


@pytest.mark.parametrize("command", _nnr_commands(), ids=" ".join)
def test_command_lines_parse(command: list[str]) -> None:
    arguments = [DIGEST if word == "$DIGEST" else word for word in command[1:]]
    PARSERS[Path(command[0]).name]().parse_args(arguments)


def test_there_are_command_lines() -> None:
    commands = _nnr_commands()
    assert {Path(command[0]).name for command in commands} == PARSERS.keys()
    assert len(commands) > 10
    with pytest.raises(SystemExit):  # so that parsing can fail
        PARSERS["nnr-info"]().parse_args(["model.nnr", "--nothing"])


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """Return the long options of a parser, without the opposites of switches."""
    options = {option for action in parser._actions for option in action.option_strings}
    return {o for o in options if o.startswith("--") and not o.startswith("--no-")}


def test_table_has_every_option() -> None:
    section = PAGES["nnr_codec/GUIDE.md"].split("## Options in brief")[1].split("\nEvery switch")[0]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", section)) == set().union(
        *(_options(make()) for make in PARSERS.values())
    )


def test_the_two_lines() -> None:
    lines = [line for block in _blocks("sh", "README.md") for line in block.splitlines()]
    assert lines[:2] == [MAIN_LINE, TEST_LINE]
    for word in shlex.split(MAIN_LINE):
        if word.startswith("conformance/"):
            assert (ROOT / word).is_file()
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/digits.nnr", "/digits.safetensors", ".venv*/"} <= set(ignored)
