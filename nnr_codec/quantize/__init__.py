"""Quantization: from weights and a step to integers; error feedback, grids, codebooks."""
