"""The forms of factored weights with their algebra, and the model map that names them."""
