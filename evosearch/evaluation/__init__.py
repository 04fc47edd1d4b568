"""What a model is worth: suites, splits, scoring, statistics."""
