"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# On CI the same examples each time: a new one that fails is a matter for a developer's run.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")
