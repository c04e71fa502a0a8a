"""From the units of a bitstream to tensors.

`unit_decoder` decodes a unit, `walk` finishes tensors (ties, products, order), `stream_decoder`
does all of it. Bad headers are refused in `..bitstream`.
"""
