"""What the tests of model files share: a small model, and its comparison with what comes back."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.errors import InvalidModel

EXTENSION_DTYPES = [
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]
SUFFIXES = [".safetensors", ".npz"]
each_format = pytest.mark.parametrize("suffix", SUFFIXES)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name  # NaNs too, bit by bit


def hide_package(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let imports of `package` fail as they do where it is not installed."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)


def loaded(path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(path) as model:
        return dict(model.arrays())


def some() -> dict[str, np.ndarray]:
    return {
        "z.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "a.bias": np.array([1, -2, 3], dtype=np.int8),
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 3), np.float16),
    }


def assert_refused(path: Path | str, reason: str | None = None) -> None:
    """Expect that a file cannot be opened and read, with a reason that names it."""
    with pytest.raises(InvalidModel, match=reason) as caught:
        loaded(path)
    assert os.path.basename(path).rstrip("\0") in str(caught.value)
