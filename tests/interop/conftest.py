"""The peer of the interop tests, and what they compare with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from peer import PYTHON_VARIABLE, Peer

# No deadline: the first example waits for the peer's start.
settings.register_profile(
    "interop", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)


@pytest.fixture(scope="session")
def peer() -> Iterator[Peer]:
    """The reference implementation; without its environment the test is skipped."""
    python = os.environ.get(PYTHON_VARIABLE)
    if not python:
        pytest.skip(f"{PYTHON_VARIABLE} does not name the Python of an environment with nncodec")
    with Peer(python) as running:
        yield running


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """Real trained networks, which are not part of the project."""
    default = Path(__file__).parents[2] / ".." / "shared"
    folder = Path(os.environ.get("NNR_SHARED", default)) / "data" / "models"
    if not folder.is_dir():
        pytest.skip("NNR_SHARED names no folder with data/models")
    return folder.resolve()
