"""Steps of tensors without data: by their sizes, and by what vectors are for."""
