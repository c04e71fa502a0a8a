"""The suite that judges decoders."""
