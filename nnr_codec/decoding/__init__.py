"""From the units of a bitstream to tensors.

`unit_reader` reads units, `unit_decoder` decodes one, `walk` finishes tensors (`ties_and_empties`
restores ties), `stream_decoder` does all of it. Bad headers are refused in `..bitstream`.
"""
