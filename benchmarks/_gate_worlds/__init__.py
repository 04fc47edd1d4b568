"""Simulated searches with known true accuracies, for `benchmarks.gate` and its short form in the tests."""
