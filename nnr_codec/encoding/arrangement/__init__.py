"""Which tensors of a model share a unit, and in which order tensors are coded."""
