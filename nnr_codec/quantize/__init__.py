"""Quantization: step sizes, and what the encoder does to turn weights into integers."""
