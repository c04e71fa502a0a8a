"""What all tests share."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from hypothesis import settings

# The package conformance is not installed: it lies beside the tests, and comes after what is.
sys.path.append(str(Path(__file__).parents[1]))

# Several processes of pytest, each with a thread for each processor, would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# On CI the same examples each time: a new one that fails is a matter for a developer's run.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

# Started in the background of a shell, we ignore SIGINT, and all that we start would as well: tests
# that interrupt a process could not.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
