"""The encoder's rooms: from a model to the units of a bitstream."""
