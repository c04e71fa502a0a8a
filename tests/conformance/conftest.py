"""What tests of the conformance suite share with those of other folders."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "interop"))  # the reference as an object
sys.path.append(str(TESTS / "experiments"))  # what tests of subjects share
