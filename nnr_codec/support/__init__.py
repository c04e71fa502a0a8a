"""What all rooms use and no codec is: ordered calls, rereadable files, digests."""
