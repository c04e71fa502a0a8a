"""The command line: nnr-encode, nnr-decode, nnr-info and nnr-eval, a module for each."""
