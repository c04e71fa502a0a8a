"""Bitstreams made from the syntax: the corpus, and random streams."""
