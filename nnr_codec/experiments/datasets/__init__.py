"""Data sets in the folders that torchvision makes of them, for whoever has these."""
