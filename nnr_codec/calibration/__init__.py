"""Second moments of layers' inputs and gradients: from a module and batches, kept in files."""
