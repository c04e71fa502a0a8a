"""Small models of our own, with the test data and an evaluator that needs numpy alone."""
