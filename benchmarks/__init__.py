"""Benchmarks of the search service; `python -m benchmarks.NAME` from the root of a checkout runs one."""
