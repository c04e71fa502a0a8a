"""Helpers of all rooms: calls in order and side by side, rereadable files, digests."""
