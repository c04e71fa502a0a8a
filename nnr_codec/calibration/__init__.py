"""Second moments of the inputs of layers: collected from a module and batches, kept in files."""
