"""Quantization: from weights and a step size to integers, by grids and codebooks as well."""
