"""The package conformance is not installed: it is found beside the tests, behind what is."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[1] / "interop"))  # the reference as an object
