"""Functions and modules in files of the user's."""
