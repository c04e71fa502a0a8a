"""What results are worth: metrics, complexity, rates, intervals."""
