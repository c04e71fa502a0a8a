"""Second moments of layers' inputs, from a module and batches."""
