"""Ready subjects, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nnr_codec.experiments.subject import Subject

__all__ = ["READY"]

READY: dict[str, Callable[[Path | None], Subject]] = {}
