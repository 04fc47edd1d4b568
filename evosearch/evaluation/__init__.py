"""Evaluation of models: suites, splits, scoring and statistics."""
