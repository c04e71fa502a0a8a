"""What samples tell of a network: moments of layers' inputs, and how its result feels errors."""
