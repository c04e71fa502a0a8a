"""Names in a message, of which there may be many."""

from __future__ import annotations

from collections.abc import Sequence

_MOST = 5


def listed(names: Sequence[str]) -> str:
    """Return names such as "'a', 'b' and 7 more"."""
    shown = names if len(names) <= _MOST + 1 else names[:_MOST]  # never "and 1 more"
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(map(repr, shown)) + more
