"""Functions of a user's file: whatever they raise names the option and the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnr_codec.errors import InvalidOptions
from nnr_codec.user_code import call_function


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import sys\ndef f(): sys.exit('no data')", "SystemExit: no data"),
        ("def f(): return 1 // 0", "ZeroDivisionError"),
        ("class E(BaseException): ...\ndef f(): raise E('own')", "E: own"),
        ("def f(needed): ...", "TypeError"),
    ],
)
def test_code_that_fails(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(text)
    with pytest.raises(InvalidOptions, match=r"user\.py") as caught:
        call_function(f"{tmp_path}/user.py:f", "module")
    assert caught.value.option == "module"
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["raise KeyboardInterrupt", "def f(): raise KeyboardInterrupt"])
def test_interruptions_go_on(text: str, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(text)
    with pytest.raises(KeyboardInterrupt):
        call_function(f"{tmp_path}/user.py:f", "module")
