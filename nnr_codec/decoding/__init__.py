"""From the units of a bitstream to tensors: the decoder, and all that describes a stream."""
