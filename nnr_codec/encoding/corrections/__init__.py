"""Streams that are coded once more with other values, by which the outputs diverge less."""
