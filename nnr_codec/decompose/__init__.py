"""Algorithms that decompose weights into the forms of ``nnr_codec.factorization``."""
