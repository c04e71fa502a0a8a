"""The package conformance is not installed: it lies beside the tests, and comes after what is."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "interop"))  # the reference as an object
sys.path.append(str(TESTS / "experiments"))  # what tests of subjects share
