"""From a model to the units of a bitstream: survey of tensors, plan, coding, errors."""
