"""Benchmarks of the search service, run from the root of a checkout with `python -m benchmarks.NAME`."""
