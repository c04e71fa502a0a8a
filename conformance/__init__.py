"""Conformance: what any decoder of the bitstream has to get right, and small models to show it."""
