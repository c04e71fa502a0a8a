"""The algorithms that fit each form to a weight."""
