"""What the tests of the core share."""

from __future__ import annotations

NEXT_STATE = ((0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6))
"""State of dependent quantization after each one, for an even and for an odd integer k."""
