"""Targets of a whole stream: it is encoded at several offsets of all qp, and one stream is kept."""
