"""The study of updates, a few steps of it."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("zstandard")

from conformance import updates  # noqa: E402


@pytest.fixture(autouse=True)
def _threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_its_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(updates, "CHANGES", ((1e-4, 2),))
    arguments = ["--networks", "digits_residual", "--qps", "-30", "--chain", "2"]
    monkeypatch.setattr("sys.argv", ["updates", *arguments])
    updates.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    version, sparse, chains = rows[1], rows[2], rows[4:]
    update, anew = float(version[4]), float(version[8])
    assert update < 0.2 * anew
    assert float(sparse[3]) < 3
    assert [row[2] for row in chains] == ["without", "with"]
    assert float(chains[1][5]) < float(chains[0][5])  # the mean over versions
