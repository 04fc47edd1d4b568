"""Mutations of YAML documents and the loaders under test, for `benchmarks.fuzz` and the tests."""
