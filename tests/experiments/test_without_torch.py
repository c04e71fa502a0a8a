"""What is said where the extra `eval` is not installed."""

from __future__ import annotations

import sys

import pytest

from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.subject import find_subject


def test_ready_subjects_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("nnr_codec.experiments.subjects")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("nnr_codec.experiments.subjects", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InvalidOptions, match="torch is missing: install the extra eval"):
        find_subject("resnet20_cifar10")
