"""The command line: nnr-encode, nnr-decode, nnr-info."""
