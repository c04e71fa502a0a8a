"""What is said where the extra `eval` is not installed."""

from __future__ import annotations

import sys

import pytest

from nnr_codec.errors import InvalidOptions
from nnr_codec.experiments.subject_source import find_subject


def test_torchvision_networks_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("nnr_codec.experiments.datasets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("nnr_codec.experiments.datasets", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InvalidOptions, match="torch is missing: install the extra eval"):
        find_subject("vgg16")
