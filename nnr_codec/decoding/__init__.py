"""From the units of a bitstream to tensors.

`unit_reader` reads units, `unit_decoder` decodes one, `walk` finishes tensors
(ties, products, order), `stream_decoder` does all of it. Bad headers are refused in `..bitstream`.
"""
