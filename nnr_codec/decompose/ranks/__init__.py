"""Ranks: the errors of forms by their ranks, and the choice among them."""
