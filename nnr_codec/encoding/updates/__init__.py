"""Updates of a base: what of a model is coded as a difference to what decoders have."""
