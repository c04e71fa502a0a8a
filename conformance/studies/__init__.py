"""What the commands that measure this codec are made of."""
