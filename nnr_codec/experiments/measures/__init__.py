"""What a decoded network is worth: metrics of its outputs, errors of its weights, complexity."""
