"""From a model to the units of a bitstream: survey of tensors, choices, plan, coding, errors."""
