"""The decoder's rooms: from the units of a bitstream to tensors."""
