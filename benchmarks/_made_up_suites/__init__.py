"""Suites of generated questions, for `benchmarks.score`."""
