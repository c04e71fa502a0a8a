"""The factored forms of layers, and the map that tells them in a stream."""
