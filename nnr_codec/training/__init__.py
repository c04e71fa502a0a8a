"""Training for low rank, fine-tuning, and batch norm, on a user's module (extra `torch`)."""
