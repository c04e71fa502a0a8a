"""Helpers that know nothing of the codec: calls in order, rereadable files, digests."""
